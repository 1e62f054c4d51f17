//! Wake-ups between the processes that share a file: datagrams with a session's id, between sockets in one folder.
//!
//! Invariants: 1. telling never blocks and never fails: who does not hear looks on a timer; 2. a socket whose process is gone
//! is removed by whoever finds it; 3. the folder has mode 0700: nobody else can send or see ids.

use std::fs;
use std::os::unix::fs::DirBuilderExt;
use std::os::unix::net::UnixDatagram;
use std::path::PathBuf;
use std::sync::Arc;

use parking_lot::Mutex;

use crate::session::hub::random_word;
use crate::store::Hint;

pub(super) struct Wake {
    folder: PathBuf,
    /// Ours, once somebody listens; none where the path is too long for a socket's.
    own: Mutex<Option<PathBuf>>,
    sender: Option<UnixDatagram>,
    /// Called for what this process itself writes: hubs of one process share no store, but tests do.
    local: Arc<Mutex<Vec<Hint>>>,
}

impl Wake {
    pub(super) fn open(folder: PathBuf) -> Self {
        let sender = UnixDatagram::unbound().ok().filter(|socket| socket.set_nonblocking(true).is_ok());
        Self { folder, own: Mutex::new(None), sender, local: Arc::default() }
    }

    pub(super) fn listen(&self, hint: Hint) {
        let mut own = self.own.lock();
        self.local.lock().push(hint);
        if own.is_some() {
            return;
        }
        let _ = fs::DirBuilder::new().mode(0o700).create(&self.folder);
        let path = self.folder.join(random_word(8));
        let Ok(socket) = UnixDatagram::bind(&path) else { return };
        *own = Some(path);
        let hints = Arc::downgrade(&self.local);
        let listening = move || {
            let mut buffer = [0; 256];
            // An empty datagram, or a store that is gone, ends the thread.
            while let Ok(length @ 1..) = socket.recv(&mut buffer) {
                let Some(hints) = hints.upgrade() else { return };
                let hints = hints.lock().clone(); // called without the lock
                let session = std::str::from_utf8(&buffer[..length]).ok();
                for hint in &hints {
                    hint(session);
                }
            }
        };
        let _ = std::thread::Builder::new().name("turnstream-hints".into()).spawn(listening);
    }

    /// Tells everybody else, and the listeners here.
    pub(super) fn tell<'a>(&self, sessions: impl IntoIterator<Item = &'a str>) {
        let mut sessions: Vec<_> = sessions.into_iter().collect();
        sessions.dedup();
        if sessions.is_empty() {
            return;
        }
        let hints = self.local.lock().clone();
        for session in &sessions {
            for hint in &hints {
                hint(Some(session));
            }
        }
        let own = self.own.lock().clone();
        let (Some(sender), Ok(folder)) = (&self.sender, fs::read_dir(&self.folder)) else { return };
        for other in folder.flatten().map(|entry| entry.path()).filter(|path| Some(path) != own.as_ref()) {
            for session in &sessions {
                match sender.send_to(session.as_bytes(), &other) {
                    Err(error) if error.kind() == std::io::ErrorKind::ConnectionRefused => {
                        let _ = fs::remove_file(&other);
                        break;
                    }
                    _ => {} // a full socket has a hint waiting
                }
            }
        }
    }
}

impl Drop for Wake {
    fn drop(&mut self) {
        if let (Some(path), Some(sender)) = (self.own.lock().take(), &self.sender) {
            let _ = sender.send_to(&[], &path);
            let _ = fs::remove_file(path);
        }
    }
}
