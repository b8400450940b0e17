//! A directory with a configuration, the program to run in it, and a daemon that answers from memory.

use std::fs;
use std::io::Write;
use std::os::unix::fs::PermissionsExt;
use std::path::PathBuf;
use std::process::{Command, Stdio};
use std::thread::JoinHandle;
use std::time::Duration;

use serde_json::Value;
use tempfile::TempDir;
use tokio::sync::{mpsc, oneshot};
use towpath_base::sa::{Class, EspSuite, Mode};
use towpath_base::{DropReason, SecretKey, Spi, SubscriberHandle};
use towpath_gateway::stored::{Stored, StoredError};
use towpath_store::{Kek, RedbStore};
use towpath_telemetry::admin::{
    AdminError, AdminServer, Counter, ErrorKind, Event, EventBus, ManualRequest, ManualSaInfo, PolicyRequest,
    PortStatus, Reply, Request, Responder, SaInfo, Stats, Status, Traffic,
};

/// What a command did.
pub(crate) struct Done {
    pub(crate) status: i32,
    pub(crate) out: String,
    pub(crate) err: String,
}

pub(crate) struct Bench {
    directory: TempDir,
}

impl Bench {
    pub(crate) fn new() -> Self {
        let bench = Self {
            directory: tempfile::tempdir().unwrap(),
        };
        let path = |name| bench.path(name).display().to_string();
        let config = format!(
            "[gateway]\npin_dir = {:?}\n[[gateway.port]]\nname = \"acc0\"\nrole = \"access\"\n\
             [store]\npath = {:?}\nkek_file = {:?}\n[admin]\nsocket = {:?}\n",
            path("pins"),
            path("towpath.redb"),
            path("store.key"),
            path("admin.sock"),
        );
        bench.write("towpath.toml", &config);
        bench
    }

    pub(crate) fn path(&self, name: &str) -> PathBuf {
        self.directory.path().join(name)
    }

    pub(crate) fn config(&self) -> PathBuf {
        self.path("towpath.toml")
    }

    pub(crate) fn write(&self, name: &str, text: &str) {
        fs::write(self.path(name), text).unwrap();
        fs::set_permissions(self.path(name), fs::Permissions::from_mode(0o600)).unwrap();
    }

    pub(crate) fn read(&self, name: &str) -> String {
        fs::read_to_string(self.path(name)).unwrap()
    }

    /// Runs the program in the directory. `--config` is the bench's unless `args` say otherwise.
    pub(crate) fn run(&self, args: &[&str], input: &str) -> Done {
        let mut command = Command::new(env!("CARGO_BIN_EXE_towpath"));
        command
            .args(args)
            .current_dir(self.directory.path())
            .env_clear()
            .env("TOWPATH_CONFIG", self.config())
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped());
        let mut child = command.spawn().unwrap();
        // A command that does not read its input closes the pipe early.
        let _ = child.stdin.take().unwrap().write_all(input.as_bytes());
        let output = child.wait_with_output().unwrap();
        Done {
            status: output.status.code().unwrap(),
            out: String::from_utf8(output.stdout).unwrap(),
            err: String::from_utf8(output.stderr).unwrap(),
        }
    }

    /// Runs a command that must do what it is asked for.
    pub(crate) fn ok(&self, args: &[&str]) -> String {
        let done = self.run(args, "");
        assert_eq!(done.status, 0, "{args:?}\n{}", done.err);
        done.out
    }

    /// Runs a command with `--json`.
    pub(crate) fn json(&self, args: &[&str]) -> Value {
        serde_json::from_str(&self.ok(&[args, &["--json"]].concat())).unwrap()
    }

    /// Runs a command that must be refused with status 2 and `message`.
    pub(crate) fn refuses(&self, args: &[&str], message: &str) {
        let done = self.run(args, "");
        assert_eq!(done.status, 2, "{args:?}\n{}{}", done.out, done.err);
        assert!(done.err.contains(message), "{args:?}\n{}\n{message}", done.err);
        assert!(
            done.err.starts_with("error: ") && done.out.is_empty(),
            "{args:?}\n{}{}",
            done.out,
            done.err
        );
    }

    /// A daemon with a store in memory, until dropped.
    pub(crate) fn daemon(&self) -> Daemon {
        let socket = self.path("admin.sock");
        let (stop, stopped) = oneshot::channel();
        let (ready, bound) = std::sync::mpsc::channel();
        let thread = std::thread::spawn(move || {
            let runtime = tokio::runtime::Builder::new_current_thread()
                .enable_all()
                .build()
                .unwrap();
            runtime.block_on(async {
                let server = AdminServer::bind(&socket).unwrap();
                ready.send(()).unwrap();
                let (sender, requests) = mpsc::channel(4);
                let events = EventBus::new();
                let served = tokio::spawn(server.serve(sender, events.clone()));
                answer(requests, &events, stopped).await;
                served.await.unwrap().unwrap();
            });
        });
        bound.recv().unwrap();
        Daemon {
            stop: Some(stop),
            thread: Some(thread),
        }
    }
}

pub(crate) struct Daemon {
    stop: Option<oneshot::Sender<()>>,
    thread: Option<JoinHandle<()>>,
}

impl Drop for Daemon {
    fn drop(&mut self) {
        drop(self.stop.take());
        if let Some(thread) = self.thread.take() {
            let joined = thread.join();
            assert!(joined.is_ok() || std::thread::panicking(), "the daemon panicked");
        }
    }
}

async fn answer(
    mut requests: mpsc::Receiver<(Request, Responder)>,
    events: &EventBus,
    mut stopped: oneshot::Receiver<()>,
) {
    let store = RedbStore::in_memory(&Kek::new(SecretKey::new([1; 32]))).unwrap();
    let mut stored = Stored::open(Box::new(store.clone()), 1, |_, _| Some(SubscriberHandle(1))).unwrap();
    let mut tick = tokio::time::interval(Duration::from_millis(20));
    loop {
        tokio::select! {
            _ = &mut stopped => return,
            _ = tick.tick() => events.publish(Event { kind: "tick".into(), ..Event::default() }),
            request = requests.recv() => {
                let Some((request, responder)) = request else { return };
                responder.respond(match request {
                    Request::Subscriber(request) => towpath_registry::apply(&store, request).map(|(reply, _)| reply),
                    Request::Status => Ok(Reply::Status(status())),
                    Request::SaList(_) => Ok(Reply::SaList(vec![sa()])),
                    Request::SaShow { spi } => {
                        Ok(Reply::SaList([sa()].into_iter().filter(|sa| sa.spi_in == spi).collect()))
                    }
                    Request::Stats => Ok(Reply::Stats(stats())),
                    Request::IkeList => Ok(Reply::IkeList(Vec::new())),
                    Request::Ike(_) => Ok(Reply::IkeStarted),
                    Request::Manual(request) => manual(&mut stored, request),
                    Request::Policy(request) => policy(&mut stored, request),
                    Request::ExportKeys { .. } | Request::Capture(_) => {
                        Err(AdminError::invalid("`permissions.show_keys` is false in the configuration, expected true"))
                    }
                    Request::FlowList(_) | Request::CaptureRead { .. } | Request::CaptureStop { .. } => Ok(Reply::Done),
                    Request::Events | Request::Recent => unreachable!("the server answers it"),
                });
            }
        }
    }
}

fn refused(error: StoredError) -> AdminError {
    let kind = match error {
        StoredError::NotFound(_) => ErrorKind::NotFound,
        StoredError::Conflict(_) => ErrorKind::Conflict,
        _ => ErrorKind::Invalid,
    };
    AdminError::new(kind, error.to_string())
}

fn manual(stored: &mut Stored, request: ManualRequest) -> Result<Reply, AdminError> {
    match request {
        ManualRequest::Add(sa) => {
            let info = ManualSaInfo::of(&sa, false);
            stored.add(*sa, SubscriberHandle(1)).map_err(refused)?;
            Ok(Reply::ManualSas(vec![info]))
        }
        ManualRequest::Remove { name } => {
            stored.remove(&name).map_err(refused)?;
            Ok(Reply::ManualSas(Vec::new()))
        }
        ManualRequest::List { with_keys } => {
            let infos = stored.sas().map(|(sa, _)| ManualSaInfo::of(sa, with_keys));
            Ok(Reply::ManualSas(infos.collect()))
        }
    }
}

fn policy(stored: &mut Stored, request: PolicyRequest) -> Result<Reply, AdminError> {
    let policies = match request {
        PolicyRequest::Add(policy) => vec![stored.add_policy(*policy).map_err(refused)?],
        PolicyRequest::Remove { id } => vec![stored.remove_policy(id).map_err(refused)?],
        PolicyRequest::Show { id } => stored.spd().get(id).cloned().into_iter().collect(),
        PolicyRequest::List => stored.spd().iter().cloned().collect(),
    };
    Ok(Reply::Policies(policies))
}

fn status() -> Status {
    Status {
        version: "test".into(),
        ports: vec![PortStatus {
            name: "acc0".into(),
            ifindex: 7,
            role: "access".into(),
            xdp_mode: "native".into(),
            queues: 1,
            zero_copy: false,
        }],
        ..Status::default()
    }
}

fn sa() -> SaInfo {
    SaInfo {
        subscriber: "alice".into(),
        operator: "default".into(),
        handle: SubscriberHandle(1),
        terminal: "10.77.1.2".parse().unwrap(),
        peer: "10.77.9.2".parse().unwrap(),
        spi_in: Spi(0xc0ff_ee01),
        spi_out: Spi(0xc0ff_ee02),
        class: Class::Full,
        level: Some(0),
        suite: Some(EspSuite::Aes256Gcm16),
        mode: Some(Mode::Transport),
        esn: Some(false),
        udp_encap: false,
        transferred: true,
        age_seconds: 61,
        to_terminal: Traffic::default(),
        to_peer: Traffic {
            packets: 3,
            bytes: 300,
        },
        local_ts: vec!["10.77.1.2".parse().unwrap()],
        remote_ts: vec!["10.77.9.2".parse().unwrap()],
        manual: None,
        untouched: 0,
        note: None,
    }
}

fn stats() -> Stats {
    let counter = |reason, packets| Counter::of_drops("drop", reason, packets);
    Stats {
        counters: vec![
            counter(DropReason::EspReplayed, 4),
            counter(DropReason::TooBig, 0),
        ],
    }
}
