//! `rados_t`.

use std::ffi::{CStr, CString, c_char};

use super::{
    fill,
    functions::{ClusterStat, Functions, Handle},
    owned_text, split_texts,
};
use crate::Library;

/// A client of a cluster, connected or on the way there.
pub(crate) struct RawCluster {
    pub(super) functions: &'static Functions,
    pub(super) handle: Handle,
}

// SAFETY: a rados_t may be used by any thread, and by several at once (librados.h: "thread-safe").
unsafe impl Send for RawCluster {}
// SAFETY: as above.
unsafe impl Sync for RawCluster {}

/// What the monitors answered to a command.
pub(crate) struct CommandAnswer {
    pub(crate) code: i32,
    pub(crate) output: Vec<u8>,
    pub(crate) status: String,
}

impl RawCluster {
    /// A client that is not connected yet; `user` with its `client.`.
    pub(crate) fn create(library: &'static Library, user: &CStr) -> Result<Self, i32> {
        let functions = &library.functions;
        let mut handle = std::ptr::null_mut();
        // SAFETY: the texts are NUL-terminated and `handle` is a place for a pointer; all outlive the call.
        let answer = unsafe { (functions.rados_create2)(&mut handle, c"ceph".as_ptr(), user.as_ptr(), 0) };
        if answer < 0 { Err(answer) } else { Ok(Self { functions, handle }) }
    }

    pub(crate) fn read_file(&self, path: &CStr) -> i32 {
        // SAFETY: the handle lives as long as self, the text through the call.
        unsafe { (self.functions.rados_conf_read_file)(self.handle, path.as_ptr()) }
    }

    pub(crate) fn set_option(&self, name: &CStr, value: &CStr) -> i32 {
        // SAFETY: as above.
        unsafe { (self.functions.rados_conf_set)(self.handle, name.as_ptr(), value.as_ptr()) }
    }

    pub(crate) fn connect(&self) -> i32 {
        // SAFETY: the handle lives; the caller connects once.
        unsafe { (self.functions.rados_connect)(self.handle) }
    }

    pub(crate) fn fsid(&self) -> Result<String, i32> {
        let mut text = [0_u8; 64];
        // SAFETY: the buffer is as long as is said.
        let answer =
            unsafe { (self.functions.rados_cluster_fsid)(self.handle, text.as_mut_ptr().cast(), text.len()) };
        if answer < 0 {
            return Err(answer);
        }
        let len = usize::try_from(answer).unwrap_or(0).min(text.len());
        Ok(String::from_utf8_lossy(&text[..len]).into_owned())
    }

    pub(crate) fn stat(&self) -> Result<ClusterStat, i32> {
        let mut stat = ClusterStat::default();
        // SAFETY: `stat` is a place for what the function fills in.
        let answer = unsafe { (self.functions.rados_cluster_stat)(self.handle, &mut stat) };
        if answer < 0 { Err(answer) } else { Ok(stat) }
    }

    pub(crate) fn addresses(&self) -> Result<String, i32> {
        let mut text: *mut c_char = std::ptr::null_mut();
        // SAFETY: `text` is a place for a pointer, which the library allocates.
        let answer = unsafe { (self.functions.rados_getaddrs)(self.handle, &mut text) };
        if answer < 0 {
            return Err(answer);
        }
        // SAFETY: on success it is a NUL-terminated string of ours.
        let addresses = unsafe { owned_text(text) };
        // SAFETY: it came from the library and is not used any more.
        unsafe { (self.functions.rados_buffer_free)(text) };
        Ok(addresses)
    }

    pub(crate) fn instance(&self) -> u64 {
        // SAFETY: the handle lives and is connected.
        unsafe { (self.functions.rados_get_instance_id)(self.handle) }
    }

    pub(crate) fn blocklist_add(&self, address: &CStr, seconds: u32) -> i32 {
        // The library takes the text as `char *` without writing to it; a copy of our own makes that certain.
        let copy: CString = address.to_owned();
        let raw = copy.into_raw();
        // SAFETY: `raw` is a NUL-terminated string that nobody else uses.
        let answer = unsafe { (self.functions.rados_blocklist_add)(self.handle, raw, seconds) };
        // SAFETY: it came from `into_raw` just above.
        drop(unsafe { CString::from_raw(raw) });
        answer
    }

    pub(crate) fn wait_for_latest_osdmap(&self) -> i32 {
        // SAFETY: the handle lives and is connected.
        unsafe { (self.functions.rados_wait_for_latest_osdmap)(self.handle) }
    }

    /// Runs a command in JSON.
    pub(crate) fn monitor_command(&self, command: &CStr) -> CommandAnswer {
        let mut commands = [command.as_ptr()];
        let (mut output, mut output_len): (*mut c_char, usize) = (std::ptr::null_mut(), 0);
        let (mut status, mut status_len): (*mut c_char, usize) = (std::ptr::null_mut(), 0);
        // SAFETY: one command of one NUL-terminated text; no input; the four places outlive the call.
        let code = unsafe {
            (self.functions.rados_mon_command)(
                self.handle,
                commands.as_mut_ptr(),
                commands.len(),
                std::ptr::null(),
                0,
                &mut output,
                &mut output_len,
                &mut status,
                &mut status_len,
            )
        };
        let output = self.take_buffer(output, output_len);
        let status = String::from_utf8_lossy(&self.take_buffer(status, status_len)).into_owned();
        CommandAnswer { code, output, status }
    }

    /// Copies a buffer that the library has allocated, and gives it back.
    fn take_buffer(&self, buffer: *mut c_char, len: usize) -> Vec<u8> {
        if buffer.is_null() || len == 0 {
            return Vec::new();
        }
        // SAFETY: the library says that this many bytes are there, and nobody else uses them.
        let bytes = unsafe { std::slice::from_raw_parts(buffer.cast::<u8>(), len) }.to_vec();
        // SAFETY: it came from the library and is not used any more.
        unsafe { (self.functions.rados_buffer_free)(buffer) };
        bytes
    }

    pub(crate) fn pools(&self) -> Result<Vec<String>, i64> {
        let bytes = fill(0_u8, 1024, |buffer, len| {
            // SAFETY: the buffer is as long as is said.
            let answer = unsafe {
                (self.functions.rados_pool_list)(self.handle, buffer.as_mut_ptr().cast(), buffer.len())
            };
            // This function answers with the length it would like, instead of an error.
            *len = usize::try_from(answer).unwrap_or(0);
            if *len > buffer.len() { -i64::from(libc::ERANGE) } else { answer.into() }
        })?;
        Ok(split_texts(&bytes))
    }
}

impl Drop for RawCluster {
    fn drop(&mut self) {
        // SAFETY: the handle is used no more: pools and images hold what keeps this value alive.
        unsafe { (self.functions.rados_shutdown)(self.handle) };
    }
}
