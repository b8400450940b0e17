//! `towpath terminal`.

use std::path::{Path, PathBuf};

use towpath_telemetry::logging;
use towpath_terminal::{RunError, SaStatus, Status, TerminalConfig};

use crate::cli::{Common, Terminal, TerminalCommand};
use crate::config::{DEFAULT_PATH, Document};
use crate::failure::{Failure, Outcome};
use crate::output;

/// Where a terminal's configuration is when `--config` does not say.
const DEFAULT_TERMINAL_PATH: &str = "/etc/towpath/terminal.toml";

/// Runs, checks or shows a terminal.
pub(crate) fn run(common: &Common, args: Terminal) -> Outcome {
    let path = if common.config == Path::new(DEFAULT_PATH) {
        Path::new(DEFAULT_TERMINAL_PATH)
    } else {
        &common.config
    };
    match args.command {
        None => {
            let mut config = load(path)?;
            if let Some(backend) = args.backend {
                config.backend = backend.into();
            }
            logging::check_filter(&args.log_filter)
                .map_err(|error| Failure::usage(format!("--log-filter: {error}")))?;
            logging::init(args.log_format.into(), &args.log_filter).map_err(Failure::runtime)?;
            serve(config)
        }
        Some(TerminalCommand::Check) => {
            load(path)?;
            if common.json {
                return output::json(&serde_json::json!({ "file": path, "valid": true }));
            }
            output::print(&format!("{}: valid\n", path.display()))
        }
        Some(TerminalCommand::Status { socket }) => status(common, path, socket),
    }
}

fn load(path: &Path) -> Outcome<TerminalConfig> {
    let document = Document::open(path)?;
    let config: TerminalConfig = document.read()?;
    config.validate().map_err(|error| {
        let problem = format!("is {}, expected {}", error.value, error.expected);
        document.invalid(&error.field, problem)
    })?;
    Ok(config)
}

fn serve(config: TerminalConfig) -> Outcome {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .map_err(Failure::runtime)?;
    runtime.block_on(async {
        let stop = stop().map_err(Failure::runtime)?;
        towpath_terminal::run(config, stop)
            .await
            .map_err(|error| match error {
                RunError::Config(_) | RunError::Core(_) | RunError::KsubFile(_) | RunError::File { .. } => {
                    Failure::usage(error)
                }
                RunError::State(_) | RunError::Host(_) => Failure::runtime(error),
            })
    })
}

/// Completes on SIGTERM or SIGINT; both are caught from the moment this returns.
fn stop() -> std::io::Result<impl Future<Output = ()>> {
    use tokio::signal::unix::{SignalKind, signal};

    let mut terminate = signal(SignalKind::terminate())?;
    let mut interrupt = signal(SignalKind::interrupt())?;
    Ok(async move {
        tokio::select! {
            _ = terminate.recv() => {}
            _ = interrupt.recv() => {}
        }
    })
}

fn status(common: &Common, path: &Path, socket: Option<PathBuf>) -> Outcome {
    let socket = match socket {
        Some(socket) => socket,
        None => load(path)?.control_socket.ok_or_else(|| {
            Failure::usage(format!(
                "{}: has no control_socket: name one there, or with --socket",
                path.display()
            ))
        })?,
    };
    let status = towpath_terminal::query(&socket)
        .map_err(|error| Failure::runtime(format!("no terminal answers at {}: {error}", socket.display())))?;
    if common.json {
        return output::json(&status);
    }
    output::print(&text(&status))
}

fn text(status: &Status) -> String {
    let addresses: Vec<String> = status.addresses.iter().map(ToString::to_string).collect();
    let registered = if status.registered { "yes" } else { "no" };
    let mut text = output::facts(&[
        ("terminal", format!("{}, handle {}", status.name, status.handle)),
        ("registered", registered.into()),
        ("addresses", addresses.join(", ")),
        (
            "interface",
            format!(
                "{}, {} (MTU {})",
                status.interface,
                match status.tun.as_str() {
                    "" => "protected by the kernel".to_owned(),
                    tun => format!("plain packets through {tun}"),
                },
                status.mtu
            ),
        ),
        ("up", output::duration(status.uptime_seconds)),
    ]);
    if !status.sas.is_empty() {
        let headings = [
            "PEER", "SPI IN", "SPI OUT", "CLASS", "SUITE", "MODE", "RECEIVED", "SENT", "",
        ];
        let mut table = output::table(&headings);
        for sa in &status.sas {
            table.add_row(row(sa));
        }
        text += &format!("\n{}", output::render(&table));
    }
    let counters: Vec<_> = status
        .counters
        .iter()
        .filter(|(_, count)| **count > 0)
        .map(|(name, count)| (name.as_str(), count.to_string()))
        .collect();
    if !counters.is_empty() {
        text += &format!("\n{}", output::facts(&counters));
    }
    text
}

fn row(sa: &SaStatus) -> [String; 9] {
    let encapsulated = if sa.udp_encapsulated { " in UDP" } else { "" };
    [
        sa.peer.to_string(),
        sa.spi_in.clone(),
        sa.spi_out.clone(),
        match sa.level {
            0 => sa.class.clone(),
            level => format!("{}, level {level}", sa.class),
        },
        sa.suite.clone(),
        format!("{}{encapsulated}", sa.mode),
        format!("{} / {}", sa.packets_in, output::bytes(sa.bytes_in)),
        format!("{} / {}", sa.packets_out, output::bytes(sa.bytes_out)),
        if sa.sending { "" } else { "replaced" }.into(),
    ]
}
