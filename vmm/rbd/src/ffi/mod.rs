//! Everything that is unsafe about the two libraries, behind functions that cannot be misused.
//!
//! One type per kind of handle ([`RawCluster`](cluster::RawCluster), [`RawPool`](pool::RawPool),
//! [`RawImage`](image::RawImage), [`RawQueue`](queue::RawQueue)): it owns the handle, lends it to each function only
//! while it lives, and gives it back when it is dropped. Lifetimes of texts and lists that a library hands out end in
//! here: what comes out is owned by Rust.
#![expect(unsafe_code, reason = "calls into librados and librbd")]

pub(crate) mod cluster;
pub(crate) mod functions;
pub(crate) mod image;
pub(crate) mod pool;
pub(crate) mod progress;
pub(crate) mod queue;

use std::ffi::{CStr, CString, c_char, c_int};

use libloading::os::unix::{self, RTLD_LOCAL, RTLD_NOW};

use crate::{
    Error,
    load::{LoadError, Version},
};
use functions::{Functions, Libraries};

/// The libraries' sonames.
const LIBRADOS: &str = "librados.so.2";
const LIBRBD: &str = "librbd.so.1";

/// Loads both libraries for the rest of the process and finds their functions.
pub(crate) fn load() -> Result<Functions, LoadError> {
    // librbd brings its own dependency on librados; asking for both by name keeps either from going first.
    let libraries = Libraries { librados: open(LIBRADOS)?, librbd: open(LIBRBD)? };
    let functions = Functions::find(&libraries)?;
    // The table outlives every handle, and the libraries' threads outlive main: neither is ever unloaded.
    std::mem::forget(libraries);
    Ok(functions)
}

fn open(file: &'static str) -> Result<unix::Library, LoadError> {
    // All symbols now, so that a broken installation fails here and not in the middle of I/O; none of them for others.
    // SAFETY: the initialisers of Ceph's libraries have no preconditions, and no termination routine runs while the
    // process lives, since the libraries are never unloaded.
    let library = unsafe { unix::Library::open(Some(file), RTLD_NOW | RTLD_LOCAL) };
    library.map_err(|error| LoadError::NotInstalled { file, reason: describe(&error) })
}

/// What the loader said, in one line: libloading keeps it as the source.
fn describe(error: &libloading::Error) -> String {
    std::error::Error::source(error).map_or_else(|| error.to_string(), ToString::to_string)
}

/// librbd's and librados's version.
pub(crate) fn versions(functions: &Functions) -> (Version, Version) {
    let ask = |function: unsafe extern "C" fn(*mut c_int, *mut c_int, *mut c_int)| {
        let mut version = Version { major: 0, minor: 0, extra: 0 };
        // SAFETY: the function writes three integers, whose places outlive the call.
        unsafe { function(&mut version.major, &mut version.minor, &mut version.extra) };
        version
    };
    (ask(functions.rbd_version), ask(functions.rados_version))
}

/// A text for C.
pub(crate) fn c_string(what: &'static str, text: &str) -> Result<CString, Error> {
    CString::new(text).map_err(|_| Error::NulByte { what })
}

/// Copies a text that a library has handed out. Null reads as nothing; what is not UTF-8 is replaced.
///
/// # Safety
/// `text` is null or a NUL-terminated string that lives through the call.
unsafe fn owned_text(text: *const c_char) -> String {
    if text.is_null() {
        return String::new();
    }
    // SAFETY: as the caller promises.
    unsafe { CStr::from_ptr(text) }.to_string_lossy().into_owned()
}

/// Texts that follow each other, each with its NUL: the form in which lists of names come.
fn split_texts(bytes: &[u8]) -> Vec<String> {
    let texts = bytes.split(|byte| *byte == 0).filter(|text| !text.is_empty());
    texts.map(|text| String::from_utf8_lossy(text).into_owned()).collect()
}

/// Calls a function that fills a buffer and answers `-ERANGE` with the size it would like, until the buffer is large
/// enough. Lists may grow between two calls, so this goes round a few times.
fn fill<T: Clone>(
    empty: T,
    mut size: usize,
    mut call: impl FnMut(&mut [T], &mut usize) -> i64,
) -> Result<Vec<T>, i64> {
    const ATTEMPTS: u32 = 16;
    /// More than any list of ours: an answer beyond it is a mistake, and must not become an allocation.
    const SIZE_MAX: usize = 1 << 24;
    for _ in 0..ATTEMPTS {
        let mut buffer = vec![empty.clone(); size];
        let mut len = size;
        match call(&mut buffer, &mut len) {
            answer if answer == -i64::from(libc::ERANGE) => size = len.max(size * 2).min(SIZE_MAX),
            answer if answer < 0 => return Err(answer),
            _ => {
                buffer.truncate(len);
                return Ok(buffer);
            }
        }
    }
    Err(-i64::from(libc::ERANGE))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_library_that_is_not_there_is_an_error_that_names_the_packages() {
        let error = open("librados-of-nobody.so.2").unwrap_err();
        let text = error.to_string();
        for part in ["librados-of-nobody.so.2", "librbd1", "librados2", "No such file"] {
            assert!(text.contains(part), "{text}");
        }
    }

    #[test]
    fn a_library_without_a_function_is_an_error_that_names_it() {
        // Another library in place of both.
        let stranger = || open("libc.so.6").unwrap();
        let libraries = Libraries { librados: stranger(), librbd: stranger() };
        let Err(error) = Functions::find(&libraries) else { panic!("libc has no rados_version") };
        assert_eq!(error, LoadError::MissingFunction { library: "librados", function: "rados_version" });
        assert!(error.to_string().contains("16 or later"), "{error}");
    }

    #[test]
    fn a_buffer_grows_until_the_answer_fits() {
        let mut calls = 0;
        let found = fill(0_u8, 2, |buffer, len| {
            calls += 1;
            // The list grows by one between the calls.
            *len = 4 + calls;
            if buffer.len() < *len {
                return -i64::from(libc::ERANGE);
            }
            buffer[0] = 7;
            0
        });
        assert_eq!(found.unwrap(), [7, 0, 0, 0, 0, 0, 0]);
        assert_eq!(fill(0_u8, 2, |_, _| -5), Err(-5));
        assert!(fill(0_u8, 0, |_, _| -i64::from(libc::ERANGE)).is_err(), "not for ever");
    }

    #[test]
    fn texts_are_split_at_their_ends() {
        assert_eq!(split_texts(b"one\0two\0"), ["one", "two"]);
        assert!(split_texts(b"\0").is_empty());
    }
}
