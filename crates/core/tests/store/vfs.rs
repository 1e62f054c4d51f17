//! SQLite's own file layer with somebody at the door: what it does to the files of a watched folder is written down, and
//! fails where it is told to.
//!
//! Owns the trace and the faults, and knows nothing of what is stored. It is the default layer of this process, and lets
//! everything else through. The `-shm` file is no part of the trace: it does not outlive a power cut.
//!
//! Invariants: 1. the trace holds operations in the order in which the disk got them; 2. a sync of a watched file reaches the
//! trace alone: tests cut the power of that disk, not of this one; 3. a write that fails has written its first half, as one
//! that meets the end of a disk does.
#![allow(unsafe_code, reason = "SQLite's file layer is a table of C functions")]
#![allow(clippy::cast_sign_loss, reason = "SQLite's lengths and places are never below 0")]

use std::collections::HashMap;
use std::ffi::{CStr, OsStr, c_char, c_int, c_void};
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, Once, OnceLock, Weak};

use rusqlite::ffi;

/// What was done to a file.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Op {
    /// A file was made that was not there.
    Create {
        file: Arc<str>,
    },
    Write {
        file: Arc<str>,
        at: usize,
        data: Vec<u8>,
    },
    Truncate {
        file: Arc<str>,
        size: usize,
    },
    /// All earlier operations on the file are on the disk; on the first of a file that was made, its folder's too.
    Sync {
        file: Arc<str>,
    },
    /// The disk has refused: what it was to write may be there or not, and is not asked for again.
    FailedSync {
        file: Arc<str>,
    },
    /// `synced`: the folder's entry is on the disk as well.
    Delete {
        file: Arc<str>,
        synced: bool,
    },
    /// The test's own remark.
    Mark(usize),
}

/// What can fail.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Call {
    Open,
    Read,
    Write,
    Truncate,
    Sync,
    Size,
    Delete,
    Lock,
    Shared,
}

/// Which calls fail, and how.
#[derive(Debug, Clone, Copy)]
pub struct Fault {
    pub call: Call,
    /// SQLite's own code.
    pub code: c_int,
    /// So many go well first.
    pub after: usize,
    /// Then so many fail.
    pub times: usize,
}

#[derive(Default)]
struct State {
    trace: Vec<Op>,
    fault: Option<Fault>,
    seen: usize,
    failed: usize,
}

/// A watched folder.
pub struct Disk {
    folder: PathBuf,
    state: Mutex<State>,
}

impl Disk {
    /// Watches `folder` until it is dropped.
    pub fn watch(folder: &Path) -> Arc<Self> {
        register();
        let disk = Arc::new(Self { folder: folder.to_owned(), state: Mutex::default() });
        let mut watched = WATCHED.lock().unwrap();
        watched.retain(|disk| disk.strong_count() > 0);
        watched.push(Arc::downgrade(&disk));
        disk
    }

    pub fn mark(&self, mark: usize) {
        self.state.lock().unwrap().trace.push(Op::Mark(mark));
    }

    pub fn take_trace(&self) -> Vec<Op> {
        std::mem::take(&mut self.state.lock().unwrap().trace)
    }

    pub fn fail(&self, fault: Fault) {
        let mut state = self.state.lock().unwrap();
        *state = State { trace: std::mem::take(&mut state.trace), fault: Some(fault), seen: 0, failed: 0 };
    }

    /// Works again from now on; how many such calls there were, and how many of them failed.
    pub fn mend(&self) -> (usize, usize) {
        let mut state = self.state.lock().unwrap();
        state.fault = None;
        (state.seen, state.failed)
    }

    /// The code that this call fails with.
    fn refuse(&self, call: Call) -> Option<c_int> {
        let mut state = self.state.lock().unwrap();
        let fault = state.fault.filter(|fault| fault.call == call)?;
        state.seen += 1;
        if state.seen <= fault.after || state.failed >= fault.times {
            return None;
        }
        state.failed += 1;
        Some(fault.code)
    }

    fn record(&self, op: Op) {
        self.state.lock().unwrap().trace.push(op);
    }
}

static WATCHED: Mutex<Vec<Weak<Disk>>> = Mutex::new(Vec::new());
/// Open watched files, by the address of SQLite's handle.
static FILES: Mutex<Option<HashMap<usize, Watched>>> = Mutex::new(None);
static BASE: OnceLock<Base> = OnceLock::new();
static METHODS: OnceLock<Methods> = OnceLock::new();

#[derive(Clone)]
struct Watched {
    disk: Arc<Disk>,
    file: Arc<str>,
    /// The methods it was opened with.
    base: &'static ffi::sqlite3_io_methods,
}

struct Base(ffi::sqlite3_vfs);
struct Methods(ffi::sqlite3_io_methods);
// SAFETY: a table of functions and pointers to constants, which SQLite itself shares between threads.
unsafe impl Send for Base {}
// SAFETY: as above.
unsafe impl Sync for Base {}

fn register() {
    static ONCE: Once = Once::new();
    ONCE.call_once(|| {
        // SAFETY: no argument, no condition.
        let base = unsafe { ffi::sqlite3_vfs_find(std::ptr::null()) };
        // SAFETY: the default layer, which lives as long as the process.
        let base = *unsafe { base.as_ref() }.expect("there is a default layer");
        let ours = ffi::sqlite3_vfs {
            zName: c"watched".as_ptr(),
            pNext: std::ptr::null_mut(),
            xOpen: Some(open),
            xDelete: Some(delete),
            ..base
        };
        assert!(BASE.set(Base(base)).is_ok());
        // SAFETY: leaked, so it lives as long as the process.
        let registered = unsafe { ffi::sqlite3_vfs_register(Box::leak(Box::new(ours)), 1) };
        assert_eq!(registered, ffi::SQLITE_OK);
    });
}

/// The disk that `path` is on, and the file's name there.
fn place(path: *const c_char) -> Option<(Arc<Disk>, Arc<str>)> {
    if path.is_null() {
        return None; // a temporary file
    }
    // SAFETY: SQLite's names end with a zero byte.
    let path = Path::new(OsStr::from_bytes(unsafe { CStr::from_ptr(path) }.to_bytes()));
    let watched = WATCHED.lock().unwrap();
    let disk = watched.iter().filter_map(Weak::upgrade).find(|disk| path.starts_with(&disk.folder))?;
    let name = path.file_name().unwrap().to_string_lossy();
    Some((disk, Arc::from(&*name)))
}

fn watched(file: *mut ffi::sqlite3_file) -> Watched {
    FILES.lock().unwrap().as_ref().unwrap()[&file.addr()].clone()
}

unsafe extern "C" fn open(
    vfs: *mut ffi::sqlite3_vfs,
    path: ffi::sqlite3_filename,
    file: *mut ffi::sqlite3_file,
    flags: c_int,
    out: *mut c_int,
) -> c_int {
    let base = BASE.get().unwrap().0.xOpen.unwrap();
    let Some((disk, name)) = place(path) else {
        // SAFETY: SQLite's own arguments, for the function that they are meant for.
        return unsafe { base(vfs, path, file, flags, out) };
    };
    if let Some(code) = disk.refuse(Call::Open) {
        // SAFETY: SQLite gives room for a handle; without methods there is nothing to close.
        unsafe { (*file).pMethods = std::ptr::null() };
        return code;
    }
    let known = disk.folder.join(&*name).exists();
    // SAFETY: as above.
    let code = unsafe { base(vfs, path, file, flags, out) };
    if code == ffi::SQLITE_OK {
        if !known {
            disk.record(Op::Create { file: name.clone() });
        }
        // SAFETY: SQLite's handle, and nobody else's until this returns.
        let handle = unsafe { &mut *file };
        // SAFETY: the methods of an open handle are constants of the layer below.
        let base: &'static ffi::sqlite3_io_methods = unsafe { &*handle.pMethods };
        let ours = METHODS.get_or_init(|| {
            Methods(ffi::sqlite3_io_methods {
                xClose: Some(close),
                xRead: Some(read),
                xWrite: Some(write),
                xTruncate: Some(truncate),
                xSync: Some(sync),
                xFileSize: Some(size),
                xLock: Some(lock),
                xShmMap: Some(map_shared),
                ..*base
            })
        });
        FILES.lock().unwrap().get_or_insert_default().insert(file.addr(), Watched { disk, file: name, base });
        // The layer below finds what it knows of the file in the handle, whatever table stands there.
        handle.pMethods = &raw const ours.0;
    }
    code
}

unsafe extern "C" fn delete(vfs: *mut ffi::sqlite3_vfs, path: *const c_char, synced: c_int) -> c_int {
    let found = place(path);
    if let Some(code) = found.as_ref().and_then(|(disk, _)| disk.refuse(Call::Delete)) {
        return code;
    }
    // SAFETY: SQLite's own arguments, for the function that they are meant for.
    let code = unsafe { BASE.get().unwrap().0.xDelete.unwrap()(vfs, path, synced) };
    if let (Some((disk, file)), ffi::SQLITE_OK) = (found, code) {
        disk.record(Op::Delete { file, synced: synced != 0 });
    }
    code
}

unsafe extern "C" fn close(file: *mut ffi::sqlite3_file) -> c_int {
    let Watched { base, .. } = FILES.lock().unwrap().as_mut().unwrap().remove(&file.addr()).unwrap();
    // SAFETY: an open handle, once.
    unsafe { base.xClose.unwrap()(file) }
}

unsafe extern "C" fn read(file: *mut ffi::sqlite3_file, to: *mut c_void, length: c_int, at: i64) -> c_int {
    let Watched { disk, base, .. } = watched(file);
    // SAFETY: SQLite's own arguments, for the function that they are meant for.
    disk.refuse(Call::Read).unwrap_or_else(|| unsafe { base.xRead.unwrap()(file, to, length, at) })
}

unsafe extern "C" fn write(file: *mut ffi::sqlite3_file, from: *const c_void, length: c_int, at: i64) -> c_int {
    let Watched { disk, file: name, base } = watched(file);
    let refused = disk.refuse(Call::Write);
    let length = if refused.is_some() { length / 2 } else { length };
    // SAFETY: SQLite's own arguments, or fewer bytes of them.
    let code = unsafe { base.xWrite.unwrap()(file, from, length, at) };
    // SAFETY: SQLite has so many bytes there, and they are its until this returns.
    let data = unsafe { std::slice::from_raw_parts(from.cast::<u8>(), length as usize) }.to_vec();
    disk.record(Op::Write { file: name, at: at as usize, data });
    refused.unwrap_or(code)
}

unsafe extern "C" fn truncate(file: *mut ffi::sqlite3_file, size: i64) -> c_int {
    let Watched { disk, file: name, base } = watched(file);
    if let Some(code) = disk.refuse(Call::Truncate) {
        return code;
    }
    disk.record(Op::Truncate { file: name, size: size as usize });
    // SAFETY: SQLite's own arguments, for the function that they are meant for.
    unsafe { base.xTruncate.unwrap()(file, size) }
}

unsafe extern "C" fn sync(file: *mut ffi::sqlite3_file, _flags: c_int) -> c_int {
    let Watched { disk, file: name, .. } = watched(file);
    if let Some(code) = disk.refuse(Call::Sync) {
        disk.record(Op::FailedSync { file: name });
        return code;
    }
    disk.record(Op::Sync { file: name });
    ffi::SQLITE_OK
}

unsafe extern "C" fn size(file: *mut ffi::sqlite3_file, to: *mut i64) -> c_int {
    let Watched { disk, base, .. } = watched(file);
    // SAFETY: SQLite's own arguments, for the function that they are meant for.
    disk.refuse(Call::Size).unwrap_or_else(|| unsafe { base.xFileSize.unwrap()(file, to) })
}

unsafe extern "C" fn lock(file: *mut ffi::sqlite3_file, level: c_int) -> c_int {
    let Watched { disk, base, .. } = watched(file);
    // SAFETY: SQLite's own arguments, for the function that they are meant for.
    disk.refuse(Call::Lock).unwrap_or_else(|| unsafe { base.xLock.unwrap()(file, level) })
}

unsafe extern "C" fn map_shared(
    file: *mut ffi::sqlite3_file,
    region: c_int,
    length: c_int,
    extend: c_int,
    to: *mut *mut c_void,
) -> c_int {
    let Watched { disk, base, .. } = watched(file);
    // SAFETY: SQLite's own arguments, for the function that they are meant for.
    disk.refuse(Call::Shared).unwrap_or_else(|| unsafe { base.xShmMap.unwrap()(file, region, length, extend, to) })
}
