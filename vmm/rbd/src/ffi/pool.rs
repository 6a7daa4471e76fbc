//! `rados_ioctx_t`, and what librbd does with one.

use std::{
    ffi::{CStr, c_char},
    sync::Arc,
};

use super::{
    cluster::RawCluster,
    fill,
    functions::{Handle, ImageSpec},
    owned_text,
    progress::{progress_argument, report_progress},
    split_texts,
};
use crate::Progress;

/// A pool, or a namespace of one.
pub(crate) struct RawPool {
    pub(super) cluster: Arc<RawCluster>,
    pub(super) handle: Handle,
}

// SAFETY: an ioctx may be used by any thread, and by several at once, as long as its settings (the namespace) do not
// change, which here only happens while it is made.
unsafe impl Send for RawPool {}
// SAFETY: as above.
unsafe impl Sync for RawPool {}

/// Options of a new image, as librbd numbers them (`RBD_IMAGE_OPTION_*`).
pub(crate) enum ImageOption<'a> {
    Number(i32, u64),
    Text(i32, &'a CStr),
}

/// An `rbd_image_options_t`.
struct RawOptions<'a> {
    pool: &'a RawPool,
    handle: Handle,
}

impl Drop for RawOptions<'_> {
    fn drop(&mut self) {
        // SAFETY: the handle is ours and used no more.
        unsafe { (self.pool.functions().rbd_image_options_destroy)(self.handle) };
    }
}

impl RawPool {
    pub(crate) fn open(cluster: &Arc<RawCluster>, name: &CStr, namespace: &CStr) -> Result<Self, i32> {
        let mut handle = std::ptr::null_mut();
        // SAFETY: the cluster is connected, `handle` a place for a pointer.
        let answer =
            unsafe { (cluster.functions.rados_ioctx_create)(cluster.handle, name.as_ptr(), &mut handle) };
        if answer < 0 {
            return Err(answer);
        }
        let pool = Self { cluster: Arc::clone(cluster), handle };
        // SAFETY: nobody else has the handle yet.
        unsafe { (pool.functions().rados_ioctx_set_namespace)(handle, namespace.as_ptr()) };
        Ok(pool)
    }

    pub(super) fn functions(&self) -> &'static super::functions::Functions {
        self.cluster.functions
    }

    pub(crate) fn init(&self) -> i32 {
        // SAFETY: the handle lives.
        unsafe { (self.functions().rbd_pool_init)(self.handle, false) }
    }

    pub(crate) fn images(&self) -> Result<Vec<String>, i64> {
        let empty = ImageSpec { id: std::ptr::null_mut(), name: std::ptr::null_mut() };
        let mut specs = fill(empty, 64, |buffer, len| {
            // SAFETY: there is room for as many entries as `len` says.
            unsafe { (self.functions().rbd_list2)(self.handle, buffer.as_mut_ptr(), len) }.into()
        })?;
        // SAFETY: on success every entry has two NUL-terminated strings.
        let names = specs.iter().map(|spec| unsafe { owned_text(spec.name) }).collect();
        // SAFETY: the entries came from the library and are not used any more.
        unsafe { (self.functions().rbd_image_spec_list_cleanup)(specs.as_mut_ptr(), specs.len()) };
        Ok(names)
    }

    fn options(&self, options: &[ImageOption<'_>]) -> Result<RawOptions<'_>, i32> {
        let mut handle = std::ptr::null_mut();
        // SAFETY: `handle` is a place for a pointer.
        unsafe { (self.functions().rbd_image_options_create)(&mut handle) };
        let made = RawOptions { pool: self, handle };
        for option in options {
            let answer = match option {
                // SAFETY: the handle was made just above.
                ImageOption::Number(name, value) => unsafe {
                    (self.functions().rbd_image_options_set_uint64)(handle, *name, *value)
                },
                // SAFETY: as above; the text is copied.
                ImageOption::Text(name, value) => unsafe {
                    (self.functions().rbd_image_options_set_string)(handle, *name, value.as_ptr())
                },
            };
            if answer < 0 {
                return Err(answer);
            }
        }
        Ok(made)
    }

    pub(crate) fn create(&self, name: &CStr, size: u64, options: &[ImageOption<'_>]) -> i32 {
        match self.options(options) {
            // SAFETY: both handles live through the call.
            Ok(options) => unsafe {
                (self.functions().rbd_create4)(self.handle, name.as_ptr(), size, options.handle)
            },
            Err(answer) => answer,
        }
    }

    /// Clones `snapshot` of `parent` in `from` into this pool.
    pub(crate) fn clone_image_from(
        &self,
        (from, parent, snapshot): (&Self, &CStr, &CStr),
        name: &CStr,
        options: &[ImageOption<'_>],
    ) -> i32 {
        match self.options(options) {
            // SAFETY: the three handles live through the call.
            Ok(options) => unsafe {
                (self.functions().rbd_clone3)(
                    from.handle,
                    parent.as_ptr(),
                    snapshot.as_ptr(),
                    self.handle,
                    name.as_ptr(),
                    options.handle,
                )
            },
            Err(answer) => answer,
        }
    }

    pub(crate) fn remove(&self, name: &CStr, mut progress: Progress<'_>) -> i32 {
        let argument = progress_argument(&mut progress);
        let function = self.functions().rbd_remove_with_progress;
        // SAFETY: the argument is the one that `report_progress` wants, and lives through the call.
        unsafe { function(self.handle, name.as_ptr(), report_progress, argument.as_ptr()) }
    }

    pub(crate) fn rename(&self, from: &CStr, to: &CStr) -> i32 {
        // SAFETY: the handle lives, the texts through the call.
        unsafe { (self.functions().rbd_rename)(self.handle, from.as_ptr(), to.as_ptr()) }
    }

    pub(crate) fn move_to_trash(&self, name: &CStr) -> i32 {
        // SAFETY: as above.
        unsafe { (self.functions().rbd_trash_move)(self.handle, name.as_ptr(), 0) }
    }

    pub(crate) fn remove_from_trash(&self, id: &CStr) -> i32 {
        // SAFETY: as above.
        unsafe { (self.functions().rbd_trash_remove)(self.handle, id.as_ptr(), true) }
    }

    pub(crate) fn restore_from_trash(&self, id: &CStr, name: &CStr) -> i32 {
        // SAFETY: as above.
        unsafe { (self.functions().rbd_trash_restore)(self.handle, id.as_ptr(), name.as_ptr()) }
    }

    pub(crate) fn create_namespace(&self, name: &CStr) -> i32 {
        // SAFETY: as above.
        unsafe { (self.functions().rbd_namespace_create)(self.handle, name.as_ptr()) }
    }

    pub(crate) fn remove_namespace(&self, name: &CStr) -> i32 {
        // SAFETY: as above.
        unsafe { (self.functions().rbd_namespace_remove)(self.handle, name.as_ptr()) }
    }

    pub(crate) fn namespaces(&self) -> Result<Vec<String>, i64> {
        let bytes = fill(0_u8, 1024, |buffer, len| {
            // SAFETY: the buffer is as long as `len` says.
            unsafe { (self.functions().rbd_namespace_list)(self.handle, buffer.as_mut_ptr().cast(), len) }
                .into()
        })?;
        Ok(split_texts(&bytes))
    }

    /// The value of an object's attribute.
    pub(crate) fn attribute(&self, object: &CStr, name: &CStr) -> Result<Vec<u8>, i64> {
        fill(0_u8, 1024, |buffer, len| {
            // SAFETY: the buffer is as long as is said.
            let answer = unsafe {
                (self.functions().rados_getxattr)(
                    self.handle,
                    object.as_ptr(),
                    name.as_ptr(),
                    buffer.as_mut_ptr().cast::<c_char>(),
                    buffer.len(),
                )
            };
            *len = usize::try_from(answer).unwrap_or(0);
            answer.into()
        })
    }

    /// In one step of the object's OSD: where the object exists and its attribute is `expected` (absent reads as
    /// empty), makes it `new` (empty removes it).
    pub(crate) fn compare_and_set_attribute(
        &self,
        object: &CStr,
        name: &CStr,
        (expected, new): (&[u8], &[u8]),
    ) -> i32 {
        /// `LIBRADOS_CMPXATTR_OP_EQ`.
        const EQUAL: u8 = 1;
        let functions = self.functions();
        // SAFETY: takes nothing.
        let operation = unsafe { (functions.rados_create_write_op)() };
        // SAFETY: the operation was made just above.
        unsafe { (functions.rados_write_op_assert_exists)(operation) };
        let (value, len) = (expected.as_ptr().cast(), expected.len());
        // SAFETY: the value has that length and outlives the operation.
        unsafe { (functions.rados_write_op_cmpxattr)(operation, name.as_ptr(), EQUAL, value, len) };
        if new.is_empty() {
            // SAFETY: the name outlives the operation.
            unsafe { (functions.rados_write_op_rmxattr)(operation, name.as_ptr()) };
        } else {
            // SAFETY: name and value outlive the operation.
            unsafe {
                (functions.rados_write_op_setxattr)(operation, name.as_ptr(), new.as_ptr().cast(), new.len());
            }
        }
        let now = std::ptr::null_mut();
        // SAFETY: operation, pool and object name live through the call.
        let answer =
            unsafe { (functions.rados_write_op_operate2)(operation, self.handle, object.as_ptr(), now, 0) };
        // SAFETY: the operation is over.
        unsafe { (functions.rados_release_write_op)(operation) };
        answer
    }
}

impl Drop for RawPool {
    fn drop(&mut self) {
        // SAFETY: the handle is used no more: images hold what keeps this value alive.
        unsafe { (self.functions().rados_ioctx_destroy)(self.handle) };
    }
}
