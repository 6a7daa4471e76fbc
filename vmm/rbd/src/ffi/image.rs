//! `rbd_image_t`.

use std::{
    ffi::{CStr, c_char, c_int, c_void},
    panic::{AssertUnwindSafe, catch_unwind},
    sync::{Arc, OnceLock},
};

use nix::errno::Errno;

use super::{
    fill,
    functions::{
        Functions, Handle, ImageInfo, ImageWatcher, LinkedImageSpec, LuksOptions, ProgressFn, SnapInfo,
        SnapSpec,
    },
    owned_text,
    pool::RawPool,
    progress::{Visit, progress_argument, report_progress, visit_argument, visit_extent},
    queue::Hub,
    split_texts,
};
use crate::{LinkedImage, Progress, Watcher, open_images::OpenImage};

/// An open image.
pub(crate) struct RawImage {
    /// Closed after the image.
    pool: Arc<RawPool>,
    handle: Handle,
    /// Made with the first queue. Closed after the image: librbd writes its eventfd until then.
    hub: OnceLock<Result<Hub, Errno>>,
    _open: OpenImage,
}

// SAFETY: an image may be used by any thread, and by several at once (librbd takes its own locks). Closing is the
// exception, and happens when the last user has gone.
unsafe impl Send for RawImage {}
// SAFETY: as above.
unsafe impl Sync for RawImage {}

/// A snapshot as the library lists it.
pub(crate) struct RawSnapshot {
    pub(crate) id: u64,
    pub(crate) size: u64,
    pub(crate) name: String,
}

/// What a watch calls. Boxed twice, so that the pointer that C carries is thin.
pub(crate) type Listener = Box<dyn Fn() + Send + Sync>;

/// A watch on an image's header, until dropped.
pub(crate) struct RawWatch {
    image: Arc<RawImage>,
    cookie: u64,
    listener: *mut Listener,
}

// SAFETY: the listener is Send and Sync, and the pointer to it is used by librbd's threads already.
unsafe impl Send for RawWatch {}
// SAFETY: as above.
unsafe impl Sync for RawWatch {}

impl RawImage {
    pub(crate) fn open(
        pool: &Arc<RawPool>,
        name: &CStr,
        snapshot: Option<&CStr>,
        read_only: bool,
    ) -> Result<Self, i32> {
        let functions = pool.functions();
        let function = if read_only { functions.rbd_open_read_only } else { functions.rbd_open };
        let snapshot = snapshot.map_or(std::ptr::null(), CStr::as_ptr);
        let mut handle = std::ptr::null_mut();
        // SAFETY: the pool lives, the texts live through the call (a null snapshot is "none").
        let answer = unsafe { function(pool.handle, name.as_ptr(), &mut handle, snapshot) };
        if answer < 0 {
            Err(answer)
        } else {
            Ok(Self { pool: Arc::clone(pool), handle, hub: OnceLock::new(), _open: OpenImage::new() })
        }
    }

    /// What the image's queues share.
    pub(super) fn hub(&self) -> Result<&Hub, Errno> {
        self.hub.get_or_init(|| Hub::new(self.functions(), self.handle)).as_ref().map_err(|errno| *errno)
    }

    pub(super) fn functions(&self) -> &'static Functions {
        self.pool.functions()
    }

    pub(super) fn handle(&self) -> Handle {
        self.handle
    }

    pub(crate) fn size(&self) -> Result<u64, i32> {
        let mut size = 0;
        // SAFETY: the handle lives; `size` is a place for the answer.
        let answer = unsafe { (self.functions().rbd_get_size)(self.handle, &mut size) };
        if answer < 0 { Err(answer) } else { Ok(size) }
    }

    pub(crate) fn features(&self) -> Result<u64, i32> {
        let mut features = 0;
        // SAFETY: as above.
        let answer = unsafe { (self.functions().rbd_get_features)(self.handle, &mut features) };
        if answer < 0 { Err(answer) } else { Ok(features) }
    }

    pub(crate) fn info(&self) -> Result<ImageInfo, i32> {
        let mut info = std::mem::MaybeUninit::<ImageInfo>::zeroed();
        let size = size_of::<ImageInfo>();
        // SAFETY: the place is as large as is said.
        let answer = unsafe { (self.functions().rbd_stat)(self.handle, info.as_mut_ptr(), size) };
        // SAFETY: every field is an integer, for which zero is a value; the function fills them in on success.
        if answer < 0 { Err(answer) } else { Ok(unsafe { info.assume_init() }) }
    }

    pub(crate) fn id(&self) -> Result<String, i32> {
        let mut text = [0_u8; 128];
        // SAFETY: the buffer is as long as is said.
        let answer =
            unsafe { (self.functions().rbd_get_id)(self.handle, text.as_mut_ptr().cast(), text.len()) };
        if answer < 0 {
            return Err(answer);
        }
        Ok(split_texts(&text).into_iter().next().unwrap_or_default())
    }

    /// The parent, and the snapshot it was cloned from.
    pub(crate) fn parent(&self) -> Result<(LinkedImage, String), i32> {
        let mut image = empty_link();
        let mut snapshot = SnapSpec { id: 0, namespace_type: 0, name: std::ptr::null_mut() };
        // SAFETY: both are places for what the function fills in.
        let answer = unsafe { (self.functions().rbd_get_parent)(self.handle, &mut image, &mut snapshot) };
        if answer < 0 {
            return Err(answer);
        }
        // SAFETY: filled in by the library.
        let linked = unsafe { owned_link(&image) };
        // SAFETY: as above.
        let name = unsafe { owned_text(snapshot.name) };
        // SAFETY: came from the library and is not used any more.
        unsafe { (self.functions().rbd_linked_image_spec_cleanup)(&mut image) };
        // SAFETY: as above.
        unsafe { (self.functions().rbd_snap_spec_cleanup)(&mut snapshot) };
        Ok((linked, name))
    }

    /// Clones of the snapshot that `snap_set` names, or of all where it names none.
    pub(crate) fn children(&self) -> Result<Vec<LinkedImage>, i64> {
        let mut specs = fill(empty_link(), 16, |buffer, len| {
            // SAFETY: there is room for as many entries as `len` says.
            unsafe { (self.functions().rbd_list_children3)(self.handle, buffer.as_mut_ptr(), len) }.into()
        })?;
        // SAFETY: filled in by the library.
        let children = specs.iter().map(|spec| unsafe { owned_link(spec) }).collect();
        // SAFETY: came from the library and is not used any more.
        unsafe { (self.functions().rbd_linked_image_spec_list_cleanup)(specs.as_mut_ptr(), specs.len()) };
        Ok(children)
    }

    pub(crate) fn resize(&self, size: u64, may_shrink: bool, progress: Progress<'_>) -> i32 {
        let functions = self.functions();
        self.with_progress(progress, |report, argument| {
            // SAFETY: the handle lives; callback and argument fit each other.
            unsafe { (functions.rbd_resize2)(self.handle, size, may_shrink, report, argument) }
        })
    }

    pub(crate) fn flatten(&self, progress: Progress<'_>) -> i32 {
        let functions = self.functions();
        self.with_progress(progress, |report, argument| {
            // SAFETY: as above.
            unsafe { (functions.rbd_flatten_with_progress)(self.handle, report, argument) }
        })
    }

    pub(crate) fn sparsify(&self, granularity: usize, progress: Progress<'_>) -> i32 {
        let functions = self.functions();
        self.with_progress(progress, |report, argument| {
            // SAFETY: as above.
            unsafe { (functions.rbd_sparsify_with_progress)(self.handle, granularity, report, argument) }
        })
    }

    fn with_progress(
        &self,
        mut progress: Progress<'_>,
        call: impl FnOnce(ProgressFn, *mut c_void) -> c_int,
    ) -> i32 {
        let argument = progress_argument(&mut progress);
        call(report_progress, argument.as_ptr())
    }

    pub(crate) fn snapshots(&self) -> Result<Vec<RawSnapshot>, i64> {
        let empty = SnapInfo { id: 0, size: 0, name: std::ptr::null() };
        let mut count = 0;
        let mut found = fill(empty, 16, |buffer, len| {
            let mut max = c_int::try_from(buffer.len()).unwrap_or(c_int::MAX);
            // SAFETY: there is room for as many entries as `max` says.
            let answer =
                unsafe { (self.functions().rbd_snap_list)(self.handle, buffer.as_mut_ptr(), &mut max) };
            count = usize::try_from(answer).unwrap_or(0);
            // Room for the entry of nulls that ends the list.
            *len = if answer < 0 { usize::try_from(max).unwrap_or(0) + 1 } else { count };
            answer.into()
        })?;
        // SAFETY: filled in by the library.
        let name = |info: &SnapInfo| unsafe { owned_text(info.name) };
        let snapshots =
            found.iter().map(|info| RawSnapshot { id: info.id, size: info.size, name: name(info) }).collect();
        // The list's end is an entry without a name, which the cleaning looks for.
        found.push(empty);
        // SAFETY: the entries came from the library, end with a null name, and are not used any more.
        unsafe { (self.functions().rbd_snap_list_end)(found.as_mut_ptr()) };
        Ok(snapshots)
    }

    pub(crate) fn create_snapshot(&self, name: &CStr) -> i32 {
        let functions = self.functions();
        self.with_progress(&mut |_, _| true, |report, argument| {
            // SAFETY: the handle lives; callback and argument fit each other.
            unsafe { (functions.rbd_snap_create2)(self.handle, name.as_ptr(), 0, report, argument) }
        })
    }

    pub(crate) fn remove_snapshot(&self, name: &CStr, progress: Progress<'_>) -> i32 {
        let functions = self.functions();
        self.with_progress(progress, |report, argument| {
            // SAFETY: as above.
            unsafe { (functions.rbd_snap_remove2)(self.handle, name.as_ptr(), 0, report, argument) }
        })
    }

    pub(crate) fn roll_back(&self, name: &CStr, progress: Progress<'_>) -> i32 {
        let functions = self.functions();
        self.with_progress(progress, |report, argument| {
            // SAFETY: as above.
            unsafe {
                (functions.rbd_snap_rollback_with_progress)(self.handle, name.as_ptr(), report, argument)
            }
        })
    }

    pub(crate) fn protect(&self, snapshot: &CStr) -> i32 {
        // SAFETY: the handle lives, the text through the call.
        unsafe { (self.functions().rbd_snap_protect)(self.handle, snapshot.as_ptr()) }
    }

    pub(crate) fn unprotect(&self, snapshot: &CStr) -> i32 {
        // SAFETY: as above.
        unsafe { (self.functions().rbd_snap_unprotect)(self.handle, snapshot.as_ptr()) }
    }

    pub(crate) fn is_protected(&self, snapshot: &CStr) -> Result<bool, i32> {
        let mut protected = 0;
        // SAFETY: as above; `protected` is a place for the answer.
        let answer = unsafe {
            (self.functions().rbd_snap_is_protected)(self.handle, snapshot.as_ptr(), &mut protected)
        };
        if answer < 0 { Err(answer) } else { Ok(protected != 0) }
    }

    /// Makes reads and `children` see a snapshot.
    pub(crate) fn set_snapshot(&self, snapshot: Option<&CStr>) -> i32 {
        let snapshot = snapshot.map_or(std::ptr::null(), CStr::as_ptr);
        // SAFETY: as above; null means the image itself.
        unsafe { (self.functions().rbd_snap_set)(self.handle, snapshot) }
    }

    pub(crate) fn acquire_lock(&self, mode: i32) -> i32 {
        // SAFETY: the handle lives.
        unsafe { (self.functions().rbd_lock_acquire)(self.handle, mode) }
    }

    pub(crate) fn release_lock(&self) -> i32 {
        // SAFETY: as above.
        unsafe { (self.functions().rbd_lock_release)(self.handle) }
    }

    pub(crate) fn break_lock(&self, mode: i32, owner: &CStr) -> i32 {
        // SAFETY: as above; the text lives through the call.
        unsafe { (self.functions().rbd_lock_break)(self.handle, mode, owner.as_ptr()) }
    }

    pub(crate) fn is_lock_owner(&self) -> Result<bool, i32> {
        let mut owner = 0;
        // SAFETY: as above; `owner` is a place for the answer.
        let answer = unsafe { (self.functions().rbd_is_exclusive_lock_owner)(self.handle, &mut owner) };
        if answer < 0 { Err(answer) } else { Ok(owner != 0) }
    }

    /// The lock's mode and its owners' addresses.
    pub(crate) fn lock_owners(&self) -> Result<(i32, Vec<String>), i64> {
        let mut mode = 0;
        let mut owners = fill(Text(std::ptr::null_mut()), 4, |buffer, len| {
            let texts = buffer.as_mut_ptr().cast::<*mut c_char>();
            // SAFETY: there is room for as many pointers as `len` says: `Text` is one pointer.
            unsafe { (self.functions().rbd_lock_get_owners)(self.handle, &mut mode, texts, len) }.into()
        })?;
        // SAFETY: filled in by the library.
        let names = owners.iter().map(|owner| unsafe { owned_text(owner.0) }).collect();
        let texts = owners.as_mut_ptr().cast::<*mut c_char>();
        // SAFETY: the texts came from the library and are not used any more.
        unsafe { (self.functions().rbd_lock_get_owners_cleanup)(texts, owners.len()) };
        Ok((mode, names))
    }

    pub(crate) fn watchers(&self) -> Result<Vec<Watcher<String>>, i64> {
        let empty = ImageWatcher { address: std::ptr::null_mut(), id: 0, cookie: 0 };
        let mut found = fill(empty, 8, |buffer, len| {
            // SAFETY: there is room for as many entries as `len` says.
            unsafe { (self.functions().rbd_watchers_list)(self.handle, buffer.as_mut_ptr(), len) }.into()
        })?;
        // SAFETY: filled in by the library.
        let address = |watcher: &ImageWatcher| unsafe { owned_text(watcher.address) };
        let watchers = found
            .iter()
            .map(|watcher| Watcher { address: address(watcher), client: watcher.id, cookie: watcher.cookie })
            .collect();
        // SAFETY: came from the library and is not used any more.
        unsafe { (self.functions().rbd_watchers_list_cleanup)(found.as_mut_ptr(), found.len()) };
        Ok(watchers)
    }

    pub(crate) fn metadata(&self, key: &CStr) -> Result<String, i64> {
        let bytes = fill(0_u8, 1024, |buffer, len| {
            let value = buffer.as_mut_ptr().cast();
            // SAFETY: the buffer is as long as `len` says.
            unsafe { (self.functions().rbd_metadata_get)(self.handle, key.as_ptr(), value, len) }.into()
        })?;
        Ok(split_texts(&bytes).into_iter().next().unwrap_or_default())
    }

    pub(crate) fn set_metadata(&self, key: &CStr, value: &CStr) -> i32 {
        // SAFETY: the handle lives, the texts through the call.
        unsafe { (self.functions().rbd_metadata_set)(self.handle, key.as_ptr(), value.as_ptr()) }
    }

    pub(crate) fn remove_metadata(&self, key: &CStr) -> i32 {
        // SAFETY: as above.
        unsafe { (self.functions().rbd_metadata_remove)(self.handle, key.as_ptr()) }
    }

    /// All keys with their values.
    pub(crate) fn all_metadata(&self) -> Result<Vec<(String, String)>, i64> {
        /// More than an image ever has of ours.
        const PAIRS_MAX: u64 = 4096;
        let mut values = Vec::new();
        let keys = fill(0_u8, 4096, |buffer, len| {
            values.resize(buffer.len(), 0_u8);
            let (mut keys_len, mut values_len) = (buffer.len(), values.len());
            // SAFETY: both buffers are as long as is said.
            let answer = unsafe {
                (self.functions().rbd_metadata_list)(
                    self.handle,
                    c"".as_ptr(),
                    PAIRS_MAX,
                    buffer.as_mut_ptr().cast(),
                    &mut keys_len,
                    values.as_mut_ptr().cast(),
                    &mut values_len,
                )
            };
            *len = if answer < 0 { keys_len.max(values_len) } else { keys_len };
            if answer >= 0 {
                values.truncate(values_len);
            }
            answer.into()
        })?;
        // A value may be empty, so the texts are cut at every NUL, not at runs of them.
        let cut = |bytes: &[u8]| -> Vec<String> {
            let texts = bytes.strip_suffix(&[0]).unwrap_or(bytes).split(|byte| *byte == 0);
            texts.map(|text| String::from_utf8_lossy(text).into_owned()).collect()
        };
        if keys.is_empty() {
            return Ok(Vec::new());
        }
        Ok(cut(&keys).into_iter().zip(cut(&values)).collect())
    }

    pub(crate) fn read(&self, offset: u64, buffer: &mut [u8]) -> i64 {
        let (data, len) = (buffer.as_mut_ptr().cast(), buffer.len());
        // SAFETY: the buffer is as long as is said and ours alone.
        unsafe { (self.functions().rbd_read)(self.handle, offset, len, data) as i64 }
    }

    pub(crate) fn write(&self, offset: u64, bytes: &[u8]) -> i64 {
        // SAFETY: the bytes are as long as is said and live through the call.
        unsafe {
            (self.functions().rbd_write)(self.handle, offset, bytes.len(), bytes.as_ptr().cast()) as i64
        }
    }

    pub(crate) fn write_zeroes(&self, offset: u64, length: usize) -> i64 {
        // SAFETY: the handle lives.
        unsafe { (self.functions().rbd_write_zeroes)(self.handle, offset, length, 0, 0) as i64 }
    }

    pub(crate) fn discard(&self, offset: u64, length: u64) -> i64 {
        // SAFETY: the handle lives.
        unsafe { (self.functions().rbd_discard)(self.handle, offset, length) }.into()
    }

    pub(crate) fn flush(&self) -> i32 {
        // SAFETY: the handle lives.
        unsafe { (self.functions().rbd_flush)(self.handle) }
    }

    /// Tells `visit` of every extent that differs from the beginning, or from a snapshot.
    pub(crate) fn diff(
        &self,
        from: Option<&CStr>,
        (offset, length): (u64, u64),
        whole_objects: bool,
        mut visit: Visit<'_>,
    ) -> i32 {
        let argument = visit_argument(&mut visit);
        let from = from.map_or(std::ptr::null(), CStr::as_ptr);
        // With what the parent has: a clone's content is all of it.
        let (parent, whole) = (1, u8::from(whole_objects));
        let function = self.functions().rbd_diff_iterate2;
        // SAFETY: the handle lives; callback and argument fit each other.
        unsafe { function(self.handle, from, offset, length, parent, whole, visit_extent, argument.as_ptr()) }
    }

    pub(crate) fn format_encryption(&self, format: i32, algorithm: i32, passphrase: &str) -> i32 {
        let mut options = luks_options(algorithm, passphrase);
        let place = std::ptr::from_mut(&mut options).cast();
        let size = size_of::<LuksOptions>();
        // SAFETY: the options are those of this format, as large as is said, and live through the call.
        unsafe { (self.functions().rbd_encryption_format)(self.handle, format, place, size) }
    }

    pub(crate) fn load_encryption(&self, format: i32, algorithm: i32, passphrase: &str) -> i32 {
        let mut options = luks_options(algorithm, passphrase);
        let place = std::ptr::from_mut(&mut options).cast();
        let size = size_of::<LuksOptions>();
        // SAFETY: as above.
        unsafe { (self.functions().rbd_encryption_load)(self.handle, format, place, size) }
    }

    /// Calls `listener`, on a thread of librbd's, after the image's header has changed.
    pub(crate) fn watch(self: &Arc<Self>, listener: Listener) -> Result<RawWatch, i32> {
        let listener = Box::into_raw(Box::new(listener));
        let mut cookie = 0;
        // SAFETY: the listener lives until the watch is gone: `RawWatch` frees it after that.
        let answer = unsafe {
            (self.functions().rbd_update_watch)(self.handle, &mut cookie, tell_listener, listener.cast())
        };
        if answer < 0 {
            // SAFETY: it came from `into_raw` just above, and the library has not taken it.
            drop(unsafe { Box::from_raw(listener) });
            return Err(answer);
        }
        Ok(RawWatch { image: Arc::clone(self), cookie, listener })
    }
}

/// One `char *` of a list, with nothing around it.
#[derive(Clone, Copy)]
#[repr(transparent)]
struct Text(*mut c_char);

fn luks_options(algorithm: i32, passphrase: &str) -> LuksOptions {
    LuksOptions { algorithm, passphrase: passphrase.as_ptr().cast(), passphrase_len: passphrase.len() }
}

fn empty_link() -> LinkedImageSpec {
    let none = std::ptr::null_mut();
    LinkedImageSpec {
        pool_id: -1,
        pool_name: none,
        pool_namespace: none,
        image_id: none,
        image_name: none,
        trash: false,
    }
}

/// # Safety
/// The texts are null or NUL-terminated.
unsafe fn owned_link(spec: &LinkedImageSpec) -> LinkedImage {
    // SAFETY: as the caller promises, here and below.
    let pool = unsafe { owned_text(spec.pool_name) };
    // SAFETY: as above.
    let namespace = unsafe { owned_text(spec.pool_namespace) };
    // SAFETY: as above.
    let id = unsafe { owned_text(spec.image_id) };
    // SAFETY: as above.
    let name = unsafe { owned_text(spec.image_name) };
    LinkedImage { pool, namespace, id, name, in_trash: spec.trash }
}

/// `rbd_update_callback_t`.
///
/// # Safety
/// `argument` points to a [`Listener`] that lives.
unsafe extern "C" fn tell_listener(argument: *mut c_void) {
    // SAFETY: as the caller promises; a listener may be called from several threads.
    let listener = unsafe { &*argument.cast::<Listener>() };
    if catch_unwind(AssertUnwindSafe(listener)).is_err() {
        tracing::error!("a listener to an image's changes panicked");
    }
}

impl Drop for RawWatch {
    fn drop(&mut self) {
        // Waits until no call of the listener is under way.
        // SAFETY: the image lives, the cookie is this watch's.
        let answer = unsafe { (self.image.functions().rbd_update_unwatch)(self.image.handle, self.cookie) };
        if answer < 0 {
            tracing::error!(answer, "librbd does not end a watch: its listener is never freed");
            return;
        }
        // SAFETY: it came from `into_raw`, and librbd calls it no more.
        drop(unsafe { Box::from_raw(self.listener) });
    }
}

impl Drop for RawImage {
    fn drop(&mut self) {
        // SAFETY: no I/O is under way and none can come: queues and watches hold what keeps this value alive, and a
        // queue waits for its requests before it lets go. (Closing beside a submission would abort the process.)
        let answer = unsafe { (self.functions().rbd_close)(self.handle) };
        // A fenced client cannot say goodbye: its lock and watch are gone already.
        if answer < 0 && answer != -libc::ESHUTDOWN {
            tracing::warn!(answer, "librbd reports an error on closing an image");
        }
    }
}
