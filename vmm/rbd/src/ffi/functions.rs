//! The functions of librados and librbd that this crate uses, found by name at run time.
//!
//! Signatures are those of Ceph 16's `rados/librados.h` and `rbd/librbd.h`. Both libraries keep theirs for good (their
//! soname has not changed since 2010), so every later release has them too; what is not there is named by
//! [`LoadError::MissingFunction`].

use std::ffi::{c_char, c_int, c_void};

use libloading::os::unix;

use crate::load::LoadError;

/// A `rados_t`, `rados_ioctx_t`, `rbd_image_t`, `rbd_completion_t` or `rbd_image_options_t`.
pub(crate) type Handle = *mut c_void;

/// `librbd_progress_fn_t`: offset and total, and whether to go on (0) or stop (a negative error number).
pub(crate) type ProgressFn = unsafe extern "C" fn(u64, u64, *mut c_void) -> c_int;
/// The callback of `rbd_diff_iterate2`: offset, length, whether there is data.
pub(crate) type DiffFn = unsafe extern "C" fn(u64, usize, c_int, *mut c_void) -> c_int;
/// `rbd_update_callback_t`.
pub(crate) type UpdateFn = unsafe extern "C" fn(*mut c_void);
/// `rbd_callback_t`.
pub(crate) type CompletionFn = unsafe extern "C" fn(Handle, *mut c_void);

/// `rbd_image_info_t`.
#[repr(C)]
#[derive(Clone, Copy)]
pub(crate) struct ImageInfo {
    pub(crate) size: u64,
    pub(crate) object_size: u64,
    pub(crate) objects: u64,
    pub(crate) order: c_int,
    block_name_prefix: [c_char; 24],
    parent_pool: i64,
    parent_name: [c_char; 96],
}

/// `rbd_image_spec_t`.
#[repr(C)]
#[derive(Clone, Copy)]
pub(crate) struct ImageSpec {
    pub(crate) id: *mut c_char,
    pub(crate) name: *mut c_char,
}

/// `rbd_linked_image_spec_t`.
#[repr(C)]
#[derive(Clone, Copy)]
pub(crate) struct LinkedImageSpec {
    pub(crate) pool_id: i64,
    pub(crate) pool_name: *mut c_char,
    pub(crate) pool_namespace: *mut c_char,
    pub(crate) image_id: *mut c_char,
    pub(crate) image_name: *mut c_char,
    pub(crate) trash: bool,
}

/// `rbd_snap_spec_t`.
#[repr(C)]
#[derive(Clone, Copy)]
pub(crate) struct SnapSpec {
    pub(crate) id: u64,
    pub(crate) namespace_type: c_int,
    pub(crate) name: *mut c_char,
}

/// `rbd_snap_info_t`.
#[repr(C)]
#[derive(Clone, Copy)]
pub(crate) struct SnapInfo {
    pub(crate) id: u64,
    pub(crate) size: u64,
    pub(crate) name: *const c_char,
}

/// `rbd_image_watcher_t`.
#[repr(C)]
#[derive(Clone, Copy)]
pub(crate) struct ImageWatcher {
    pub(crate) address: *mut c_char,
    pub(crate) id: i64,
    pub(crate) cookie: u64,
}

/// `rbd_encryption_luks1_format_options_t`, and the same for LUKS2.
#[repr(C)]
#[derive(Clone, Copy)]
pub(crate) struct LuksOptions {
    pub(crate) algorithm: c_int,
    pub(crate) passphrase: *const c_char,
    pub(crate) passphrase_len: usize,
}

/// `struct rados_cluster_stat_t`. Kilobytes and objects.
#[repr(C)]
#[derive(Clone, Copy, Default)]
pub(crate) struct ClusterStat {
    pub(crate) total_kib: u64,
    pub(crate) used_kib: u64,
    pub(crate) available_kib: u64,
    pub(crate) objects: u64,
}

/// Both libraries, by their names.
pub(super) struct Libraries {
    pub(super) librados: unix::Library,
    pub(super) librbd: unix::Library,
}

/// Declares the table: its fields, and how they are found.
macro_rules! functions {
    ($($library:ident: { $(fn $name:ident($($type:ty),* $(,)?) $(-> $returns:ty)?;)* })*) => {
        /// One field per function. Valid while the libraries are loaded, which is until the process ends.
        pub(crate) struct Functions {
            $($(pub(crate) $name: unsafe extern "C" fn($($type),*) $(-> $returns)?,)*)*
        }

        impl Functions {
            /// Looks every function up.
            pub(super) fn find(libraries: &Libraries) -> Result<Self, LoadError> {
                Ok(Self {
                    $($($name: {
                        // SAFETY: the signature is the one that the library's header declares for this name.
                        let found = unsafe {
                            libraries.$library.get::<unsafe extern "C" fn($($type),*) $(-> $returns)?>(
                                concat!(stringify!($name), "\0").as_bytes(),
                            )
                        };
                        *found.map_err(|_| LoadError::MissingFunction {
                            library: stringify!($library),
                            function: stringify!($name),
                        })?
                    },)*)*
                })
            }
        }
    };
}

functions! {
    librados: {
        fn rados_version(*mut c_int, *mut c_int, *mut c_int);
        fn rados_create2(*mut Handle, *const c_char, *const c_char, u64) -> c_int;
        fn rados_conf_read_file(Handle, *const c_char) -> c_int;
        fn rados_conf_set(Handle, *const c_char, *const c_char) -> c_int;
        fn rados_connect(Handle) -> c_int;
        fn rados_shutdown(Handle);
        fn rados_cluster_fsid(Handle, *mut c_char, usize) -> c_int;
        fn rados_cluster_stat(Handle, *mut ClusterStat) -> c_int;
        fn rados_getaddrs(Handle, *mut *mut c_char) -> c_int;
        fn rados_get_instance_id(Handle) -> u64;
        fn rados_blocklist_add(Handle, *mut c_char, u32) -> c_int;
        fn rados_wait_for_latest_osdmap(Handle) -> c_int;
        fn rados_mon_command(
            Handle, *mut *const c_char, usize, *const c_char, usize,
            *mut *mut c_char, *mut usize, *mut *mut c_char, *mut usize,
        ) -> c_int;
        fn rados_buffer_free(*mut c_char);
        fn rados_pool_list(Handle, *mut c_char, usize) -> c_int;
        fn rados_ioctx_create(Handle, *const c_char, *mut Handle) -> c_int;
        fn rados_ioctx_set_namespace(Handle, *const c_char);
        fn rados_ioctx_destroy(Handle);
        fn rados_getxattr(Handle, *const c_char, *const c_char, *mut c_char, usize) -> c_int;
        fn rados_create_write_op() -> Handle;
        fn rados_release_write_op(Handle);
        fn rados_write_op_assert_exists(Handle);
        fn rados_write_op_cmpxattr(Handle, *const c_char, u8, *const c_char, usize);
        fn rados_write_op_setxattr(Handle, *const c_char, *const c_char, usize);
        fn rados_write_op_rmxattr(Handle, *const c_char);
        fn rados_write_op_operate2(Handle, Handle, *const c_char, *mut libc::timespec, c_int) -> c_int;
    }
    librbd: {
        fn rbd_version(*mut c_int, *mut c_int, *mut c_int);
        fn rbd_pool_init(Handle, bool) -> c_int;
        fn rbd_list2(Handle, *mut ImageSpec, *mut usize) -> c_int;
        fn rbd_image_spec_list_cleanup(*mut ImageSpec, usize);
        fn rbd_image_options_create(*mut Handle);
        fn rbd_image_options_destroy(Handle);
        fn rbd_image_options_set_string(Handle, c_int, *const c_char) -> c_int;
        fn rbd_image_options_set_uint64(Handle, c_int, u64) -> c_int;
        fn rbd_create4(Handle, *const c_char, u64, Handle) -> c_int;
        fn rbd_clone3(Handle, *const c_char, *const c_char, Handle, *const c_char, Handle) -> c_int;
        fn rbd_remove_with_progress(Handle, *const c_char, ProgressFn, *mut c_void) -> c_int;
        fn rbd_rename(Handle, *const c_char, *const c_char) -> c_int;
        fn rbd_trash_move(Handle, *const c_char, u64) -> c_int;
        fn rbd_trash_remove(Handle, *const c_char, bool) -> c_int;
        fn rbd_trash_restore(Handle, *const c_char, *const c_char) -> c_int;
        fn rbd_namespace_create(Handle, *const c_char) -> c_int;
        fn rbd_namespace_remove(Handle, *const c_char) -> c_int;
        fn rbd_namespace_list(Handle, *mut c_char, *mut usize) -> c_int;
        fn rbd_open(Handle, *const c_char, *mut Handle, *const c_char) -> c_int;
        fn rbd_open_read_only(Handle, *const c_char, *mut Handle, *const c_char) -> c_int;
        fn rbd_close(Handle) -> c_int;
        fn rbd_stat(Handle, *mut ImageInfo, usize) -> c_int;
        fn rbd_get_size(Handle, *mut u64) -> c_int;
        fn rbd_get_features(Handle, *mut u64) -> c_int;
        fn rbd_get_id(Handle, *mut c_char, usize) -> c_int;
        fn rbd_get_parent(Handle, *mut LinkedImageSpec, *mut SnapSpec) -> c_int;
        fn rbd_linked_image_spec_cleanup(*mut LinkedImageSpec);
        fn rbd_snap_spec_cleanup(*mut SnapSpec);
        fn rbd_resize2(Handle, u64, bool, ProgressFn, *mut c_void) -> c_int;
        fn rbd_flatten_with_progress(Handle, ProgressFn, *mut c_void) -> c_int;
        fn rbd_sparsify_with_progress(Handle, usize, ProgressFn, *mut c_void) -> c_int;
        fn rbd_snap_list(Handle, *mut SnapInfo, *mut c_int) -> c_int;
        fn rbd_snap_list_end(*mut SnapInfo);
        fn rbd_snap_create2(Handle, *const c_char, u32, ProgressFn, *mut c_void) -> c_int;
        fn rbd_snap_remove2(Handle, *const c_char, u32, ProgressFn, *mut c_void) -> c_int;
        fn rbd_snap_rollback_with_progress(Handle, *const c_char, ProgressFn, *mut c_void) -> c_int;
        fn rbd_snap_protect(Handle, *const c_char) -> c_int;
        fn rbd_snap_unprotect(Handle, *const c_char) -> c_int;
        fn rbd_snap_is_protected(Handle, *const c_char, *mut c_int) -> c_int;
        fn rbd_snap_set(Handle, *const c_char) -> c_int;
        fn rbd_list_children3(Handle, *mut LinkedImageSpec, *mut usize) -> c_int;
        fn rbd_linked_image_spec_list_cleanup(*mut LinkedImageSpec, usize);
        fn rbd_lock_acquire(Handle, c_int) -> c_int;
        fn rbd_lock_release(Handle) -> c_int;
        fn rbd_lock_get_owners(Handle, *mut c_int, *mut *mut c_char, *mut usize) -> c_int;
        fn rbd_lock_get_owners_cleanup(*mut *mut c_char, usize);
        fn rbd_lock_break(Handle, c_int, *const c_char) -> c_int;
        fn rbd_is_exclusive_lock_owner(Handle, *mut c_int) -> c_int;
        fn rbd_watchers_list(Handle, *mut ImageWatcher, *mut usize) -> c_int;
        fn rbd_watchers_list_cleanup(*mut ImageWatcher, usize);
        fn rbd_update_watch(Handle, *mut u64, UpdateFn, *mut c_void) -> c_int;
        fn rbd_update_unwatch(Handle, u64) -> c_int;
        fn rbd_metadata_get(Handle, *const c_char, *mut c_char, *mut usize) -> c_int;
        fn rbd_metadata_set(Handle, *const c_char, *const c_char) -> c_int;
        fn rbd_metadata_remove(Handle, *const c_char) -> c_int;
        fn rbd_metadata_list(
            Handle, *const c_char, u64, *mut c_char, *mut usize, *mut c_char, *mut usize,
        ) -> c_int;
        fn rbd_read(Handle, u64, usize, *mut c_char) -> isize;
        fn rbd_write(Handle, u64, usize, *const c_char) -> isize;
        fn rbd_write_zeroes(Handle, u64, usize, c_int, c_int) -> isize;
        fn rbd_discard(Handle, u64, u64) -> c_int;
        fn rbd_flush(Handle) -> c_int;
        fn rbd_diff_iterate2(Handle, *const c_char, u64, u64, u8, u8, DiffFn, *mut c_void) -> c_int;
        fn rbd_encryption_format(Handle, c_int, *mut c_void, usize) -> c_int;
        fn rbd_encryption_load(Handle, c_int, *mut c_void, usize) -> c_int;
        fn rbd_set_image_notification(Handle, c_int, c_int) -> c_int;
        fn rbd_poll_io_events(Handle, *mut Handle, c_int) -> c_int;
        fn rbd_aio_create_completion(*mut c_void, Option<CompletionFn>, *mut Handle) -> c_int;
        fn rbd_aio_get_return_value(Handle) -> isize;
        fn rbd_aio_get_arg(Handle) -> *mut c_void;
        fn rbd_aio_release(Handle);
        fn rbd_aio_readv(Handle, *const libc::iovec, c_int, u64, Handle) -> c_int;
        fn rbd_aio_writev(Handle, *const libc::iovec, c_int, u64, Handle) -> c_int;
        fn rbd_aio_discard(Handle, u64, u64, Handle) -> c_int;
        fn rbd_aio_write_zeroes(Handle, u64, usize, Handle, c_int, c_int) -> c_int;
        fn rbd_aio_flush(Handle, Handle) -> c_int;
    }
}
