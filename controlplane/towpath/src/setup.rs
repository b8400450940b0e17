//! `towpath init`, `towpath config` and `towpath unload`.

use std::fs::{self, OpenOptions};
use std::io::Write;
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;
use std::time::{Duration, Instant};

use towpath_store::{Kek, RedbStore, StoreError};

use crate::cli::{Common, Config as ConfigCommand, Init, Unload};
use crate::config::{Config, EXAMPLE, PortRole, Role};
use crate::failure::{Failure, Outcome};
use crate::output;

/// Writes what is missing of configuration, key file and store; says what it did.
pub(crate) fn init(common: &Common, args: &Init) -> Outcome {
    let mut done = Vec::new();
    let path = &common.config;
    if path.exists() {
        if !args.ports.is_empty() {
            return Err(Failure::usage(format!(
                "{} exists already and is not changed: edit its [[gateway.port]], or leave out --port",
                path.display()
            )));
        }
        done.push(format!("{}: there already", path.display()));
    } else {
        write_config(path, &args.ports)?;
        done.push(format!("{}: written", path.display()));
    }
    let config = Config::load(path)?;
    let key_file = &config.store.kek_file;
    let kek = if key_file.exists() {
        done.push(format!("{}: there already", key_file.display()));
        Kek::load(key_file)?
    } else {
        if config.store.path.exists() {
            return Err(Failure::usage(format!(
                "{} is missing, and a new key would not open the store {} that is there: bring the key back",
                key_file.display(),
                config.store.path.display()
            )));
        }
        done.push(format!(
            "{}: key drawn; keep a copy elsewhere, without it the secrets in the store are lost",
            key_file.display()
        ));
        Kek::create(key_file)?
    };
    let existed = config.store.path.exists();
    RedbStore::open(&config.store.path, &kek)?;
    let state = if existed { "there already" } else { "created" };
    done.push(format!("{}: {state}", config.store.path.display()));
    if common.json {
        return output::json(&done);
    }
    output::print(&(done.join("\n") + "\n"))
}

/// The example, with these ports in place of its own.
fn with_ports(ports: &[(String, PortRole)]) -> String {
    if ports.is_empty() {
        return EXAMPLE.to_owned();
    }
    let (start, end) = (EXAMPLE.find("[[gateway.port]]"), EXAMPLE.find("[keyserver]"));
    let (Some(start), Some(end)) = (start, end) else {
        return EXAMPLE.to_owned();
    };
    let mut text = EXAMPLE.get(..start).unwrap_or_default().to_owned();
    for (name, role) in ports {
        let role = match role {
            PortRole::Access => "access",
            PortRole::Core => "core",
        };
        let name = toml::Value::from(name.as_str());
        text += &format!("[[gateway.port]]\nname = {name}\nrole = \"{role}\"\n\n");
    }
    text + EXAMPLE.get(end..).unwrap_or_default()
}

fn write_config(path: &Path, ports: &[(String, PortRole)]) -> Outcome {
    let fail =
        |error: std::io::Error| Failure::usage(format!("{}: cannot be written: {error}", path.display()));
    let text = with_ports(ports);
    // A wrong port is said before anything is written.
    let document = crate::config::Document::from_text("--port", text.as_str());
    crate::config::check(&document.read()?, &document)?;
    if let Some(directory) = path
        .parent()
        .filter(|directory| !directory.as_os_str().is_empty())
    {
        fs::create_dir_all(directory).map_err(fail)?;
    }
    let mut file = OpenOptions::new()
        .write(true)
        .create_new(true)
        .mode(0o640)
        .open(path)
        .map_err(fail)?;
    file.write_all(text.as_bytes()).map_err(fail)
}

/// Checks or shows configuration.
pub(crate) fn config(common: &Common, command: &ConfigCommand) -> Outcome {
    match command {
        ConfigCommand::Example => output::print(EXAMPLE),
        ConfigCommand::Check => {
            let config = Config::load(&common.config)?;
            let notes = references(&config)?;
            if common.json {
                return output::json(&serde_json::json!({
                    "file": common.config, "valid": true, "notes": notes, "config": config
                }));
            }
            for note in notes {
                eprintln!("note: {note}");
            }
            output::print(&format!("{}: valid\n", common.config.display()))
        }
    }
}

/// Checks what the configuration refers to. What a first start makes by itself, or what may come later, is a
/// note; what can never work is an error.
fn references(config: &Config) -> Outcome<Vec<String>> {
    let mut notes = Vec::new();
    if config.runs(Role::Gateway) {
        for (index, port) in config.gateway.port.iter().enumerate() {
            if !Path::new("/sys/class/net").join(&port.name).exists() {
                notes.push(format!(
                    "gateway.port[{index}].name: there is no interface `{}` now",
                    port.name
                ));
            }
        }
        match towpath_bpf::find_object(config.gateway.bpf_object.as_deref()) {
            Ok(path) => {
                towpath_bpf::check_object(&path)
                    .map_err(|error| Failure::usage(format!("gateway.bpf_object: {error}")))?;
            }
            Err(error) if config.gateway.bpf_object.is_some() => {
                return Err(Failure::usage(format!("gateway.bpf_object: {error}")));
            }
            Err(error) => notes.push(format!("gateway.bpf_object: {error}")),
        }
    }
    if !config.store.kek_file.exists() {
        notes.push(format!(
            "store.kek_file: {} does not exist yet; `towpath init` makes one",
            config.store.kek_file.display()
        ));
        return Ok(notes);
    }
    let kek = Kek::load(&config.store.kek_file)?;
    if config.store.path.exists() {
        match RedbStore::open(&config.store.path, &kek) {
            Ok(_) => {}
            Err(StoreError::InUse(_)) => {
                notes.push("store.path: in use by a running daemon, not looked into".into())
            }
            Err(error) => return Err(Failure::usage(format!("store.path: {error}"))),
        }
    }
    if config.debug.key_log.is_some() {
        notes.push("debug.key_log: every key will be written to a file; not for production".into());
    }
    Ok(notes)
}

/// Opens key file and store once, so that a daemon that cannot have them fails before it touches an interface.
pub(crate) fn check_store(config: &Config) -> Outcome {
    let kek = Kek::load(&config.store.kek_file)?;
    let until = Instant::now() + RELEASED_WITHIN;
    let mut told = false;
    loop {
        match RedbStore::open(&config.store.path, &kek) {
            Ok(_) => return Ok(()),
            // A process that was killed lets go when the kernel has cleared up after it.
            Err(StoreError::InUse(_)) if Instant::now() < until && !answers(&config.admin.socket) => {
                if !told {
                    eprintln!(
                        "towpath: store {} is held by a process that no longer answers; waiting up to {} s",
                        config.store.path.display(),
                        RELEASED_WITHIN.as_secs()
                    );
                    told = true;
                }
                std::thread::sleep(Duration::from_millis(50));
            }
            Err(error) => return Err(error.into()),
        }
    }
}

/// How long a start waits for the store of a process that was killed.
const RELEASED_WITHIN: Duration = Duration::from_secs(10);

/// Whether a daemon is there.
fn answers(socket: &Path) -> bool {
    matches!(towpath_telemetry::admin::Client::connect(socket), Ok(Some(_)))
}

/// Detaches the XDP program.
pub(crate) fn unload(common: &Common, args: Unload) -> Outcome {
    let pin_dir = match args.pin_dir {
        Some(pin_dir) => pin_dir,
        None => Config::load_or_default(&common.config)?.gateway.pin_dir,
    };
    let ports = towpath_bpf::unload(&pin_dir).map_err(|error| match error {
        error @ towpath_bpf::Error::NotPinned(_) => Failure::usage(error),
        error => Failure::runtime(error),
    })?;
    if common.json {
        return output::json(&serde_json::json!({ "detached_ports": ports, "pin_dir": pin_dir }));
    }
    output::print(&format!(
        "detached from {ports} ports, {} removed\n",
        pin_dir.display()
    ))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ports_replace_those_of_the_example() {
        let ports = [
            ("wan0".to_owned(), PortRole::Core),
            ("lte0".to_owned(), PortRole::Access),
        ];
        let config: Config = toml::from_str(&with_ports(&ports)).unwrap();
        let found: Vec<_> = config
            .gateway
            .port
            .into_iter()
            .map(|port| (port.name, port.role))
            .collect();
        assert_eq!(found, ports);
        assert_eq!(config.keyserver, crate::config::Keyserver::default());
    }
}
