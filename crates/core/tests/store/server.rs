//! Real Redis servers for tests: each on a free port of 127.0.0.1, in memory alone, gone with the test.

use std::fs;
use std::io::{Read, Write};
use std::net::{TcpListener, TcpStream};
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use crate::files::Folder;

/// How long anything may take here.
pub const PATIENCE: Duration = Duration::from_secs(20);

pub struct Server {
    process: Child,
    port: u16,
    arguments: Vec<String>,
    folder: Folder,
}

/// Whether `program` can be run; says which package has it where it cannot.
pub fn installed(program: &str, package: &str) -> bool {
    let found = Command::new(program).arg("--version").stdout(Stdio::null()).stderr(Stdio::null()).status().is_ok();
    if !found {
        assert!(std::env::var("TURNSTREAM_REQUIRE").as_deref() != Ok("all"), "not installed: {package}");
        eprintln!("skipped: needs {program} (apt-get install {package})");
    }
    found
}

/// `TURNSTREAM_REDIS_SERVER` names another server: an old one, or Valkey.
fn program() -> String {
    std::env::var("TURNSTREAM_REDIS_SERVER").unwrap_or_else(|_| "redis-server".into())
}

fn free_port() -> u16 {
    TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port()
}

impl Server {
    /// A server that listens by the time this returns; none where there is no redis-server.
    pub fn start(arguments: &[&str]) -> Option<Self> {
        if !installed(&program(), "redis-server") {
            return None;
        }
        let arguments: Vec<_> = arguments.iter().map(|argument| (*argument).to_owned()).collect();
        let folder = Folder::new();
        fs::create_dir(folder.path()).unwrap();
        // Another process may take the port between the question and the server's answer: then another one.
        for _ in 0..5 {
            let port = free_port();
            let mut process = spawn(port, &arguments, &folder);
            if answers(&mut process, port) {
                return Some(Self { process, port, arguments, folder });
            }
            process.kill().unwrap();
            process.wait().unwrap();
        }
        panic!("redis-server does not start: {}", fs::read_to_string(folder.path().join("log")).unwrap_or_default());
    }

    /// A server that also listens for TLS, on the port that [`Self::tls_url`] names.
    pub fn start_tls(certificate: &Path, key: &Path) -> Option<Self> {
        if std::env::var_os("TURNSTREAM_REDIS_SERVER").is_some() {
            return None; // not every build knows TLS
        }
        let port = free_port().to_string();
        let [certificate, key] = [certificate, key].map(|path| path.to_string_lossy().into_owned());
        let arguments =
            ["--tls-port", &port, "--tls-cert-file", &certificate, "--tls-key-file", &key, "--tls-ca-cert-file", &certificate];
        Self::start(&arguments)
    }

    pub fn tls_url(&self) -> String {
        format!("rediss://127.0.0.1:{}", self.arguments[1])
    }

    pub fn port(&self) -> u16 {
        self.port
    }

    pub fn url(&self) -> String {
        format!("redis://127.0.0.1:{}", self.port)
    }

    /// Ends it as a crash does: nothing is kept.
    pub fn kill(&mut self) {
        self.process.kill().unwrap();
        self.process.wait().unwrap();
    }

    /// On the same port, with nothing in it.
    pub fn start_again(&mut self) {
        self.process = spawn(self.port, &self.arguments, &self.folder);
        assert!(answers(&mut self.process, self.port), "redis-server does not start again");
    }

    pub fn signal(&self, name: &str) {
        let sent = Command::new("kill").args([&format!("-{name}"), &self.process.id().to_string()]).status().unwrap();
        assert!(sent.success());
    }

    /// What a command in a line answers, raw.
    pub fn say(&self, line: &str) -> String {
        say(self.port, line).unwrap()
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        let _ = self.process.kill(); // ends a stopped one too
        let _ = self.process.wait();
    }
}

fn spawn(port: u16, arguments: &[String], folder: &Folder) -> Child {
    let log = fs::File::create(folder.path().join("log")).unwrap();
    Command::new(program())
        .args(["--port", &port.to_string(), "--bind", "127.0.0.1", "--save", "", "--appendonly", "no"])
        .args(["--repl-diskless-sync-delay", "0"]) // else five seconds before a replica hears of anything
        .args(["--dir", &folder.path().to_string_lossy()])
        .args(arguments)
        .stdin(Stdio::null())
        .stdout(log.try_clone().unwrap())
        .stderr(log)
        .spawn()
        .unwrap()
}

/// Whether it is this process that answers on the port, before it ends and before patience does.
fn answers(process: &mut Child, port: u16) -> bool {
    let until = Instant::now() + PATIENCE;
    while Instant::now() < until && process.try_wait().unwrap().is_none() {
        if let Ok(said) = say(port, "PING") {
            // A server with a password, or with TLS alone, refuses, and is there.
            return said.starts_with("+PONG") || said.starts_with('-');
        }
        std::thread::sleep(Duration::from_millis(2)); // between connections that nobody listens for
    }
    false
}

fn say(port: u16, line: &str) -> std::io::Result<String> {
    let mut socket = TcpStream::connect(("127.0.0.1", port))?;
    socket.set_read_timeout(Some(PATIENCE))?;
    socket.write_all(format!("{line}\r\n").as_bytes())?;
    let mut said = vec![0; 1 << 16];
    let length = socket.read(&mut said)?; // short answers come at once
    Ok(String::from_utf8_lossy(&said[..length]).into_owned())
}
