//! A pool, or a namespace of one, and the images in it.

use std::{fmt, sync::Arc};

use crate::{
    Cluster, Error, Progress,
    cluster::check,
    ffi::{
        c_string,
        pool::{ImageOption, RawPool},
    },
};

/// An open pool. Cheap to clone.
#[derive(Clone)]
pub struct Pool {
    raw: Arc<RawPool>,
    cluster: Cluster,
    name: String,
    namespace: String,
}

/// What a new image is to be like.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct CreateOptions {
    /// Size of its objects as a power of two; 22 (4 MiB) where nothing is said.
    pub object_order: Option<u8>,
    /// The pool its data goes to, where that is another one (erasure-coded).
    pub data_pool: Option<String>,
}

/// An attribute of one object, by name.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Attribute<'a> {
    /// The object.
    pub object: &'a str,
    /// The attribute's name.
    pub name: &'a str,
}

impl fmt::Debug for Pool {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Pool")
            .field("name", &self.name)
            .field("namespace", &self.namespace)
            .finish_non_exhaustive()
    }
}

impl CreateOptions {
    /// Numbers as in `librbd.h`.
    fn collect<'a>(&self, data_pool: Option<&'a std::ffi::CStr>, clone: bool) -> Vec<ImageOption<'a>> {
        /// Layering, exclusive-lock, object-map, fast-diff, deep-flatten: what the locks, snapshots and usage of this
        /// crate stand on.
        const FEATURES: u64 = 1 | 4 | 8 | 16 | 32;
        let mut options = vec![ImageOption::Number(1, FEATURES)];
        options.extend(self.object_order.map(|order| ImageOption::Number(2, order.into())));
        options.extend(data_pool.map(|pool| ImageOption::Text(10, pool)));
        if clone {
            // Children that keep their parent's snapshot alive without its being protected.
            options.push(ImageOption::Number(12, 2));
        }
        options
    }
}

impl Pool {
    /// Opens a pool, or a namespace of it ("" is the unnamed one).
    ///
    /// # Errors
    /// [`Error::is_not_found`].
    pub fn open(cluster: &Cluster, name: &str, namespace: &str) -> Result<Self, Error> {
        let raw = RawPool::open(
            cluster.raw(),
            &c_string("a pool's name", name)?,
            &c_string("a namespace's name", namespace)?,
        )
        .map_err(|answer| Error::refused("open the pool", name, answer))?;
        Ok(Self {
            raw: Arc::new(raw),
            cluster: cluster.clone(),
            name: name.to_owned(),
            namespace: namespace.to_owned(),
        })
    }

    pub(crate) fn raw(&self) -> &Arc<RawPool> {
        &self.raw
    }

    /// The cluster it is in.
    pub fn cluster(&self) -> &Cluster {
        &self.cluster
    }
    /// Its name.
    pub fn name(&self) -> &str {
        &self.name
    }
    /// The namespace; empty for the unnamed one.
    pub fn namespace(&self) -> &str {
        &self.namespace
    }

    /// Prepares a new pool for images. Idempotent.
    pub fn initialise(&self) -> Result<(), Error> {
        check(self.raw.init()).map_err(|answer| Error::refused("prepare the pool", &self.name, answer))
    }

    /// The names of all images.
    pub fn images(&self) -> Result<Vec<String>, Error> {
        self.raw.images().map_err(|answer| Error::refused("list the images of", &self.name, answer))
    }

    /// Creates an image of `size` bytes that reads as zeros.
    ///
    /// # Errors
    /// [`Error::is_already_there`].
    pub fn create_image(&self, name: &str, size: u64, options: &CreateOptions) -> Result<(), Error> {
        let data_pool =
            options.data_pool.as_deref().map(|pool| c_string("a pool's name", pool)).transpose()?;
        let image = c_string("an image's name", name)?;
        check(self.raw.create(&image, size, &options.collect(data_pool.as_deref(), false)))
            .map_err(|answer| Error::refused("create the image", name, answer))
    }

    /// Creates an image that starts as `snapshot` of `parent`, which may be in another pool of the same cluster. Takes
    /// the same few milliseconds whatever the size: both share what neither has written since.
    ///
    /// # Errors
    /// [`Error::is_already_there`], [`Error::is_not_found`].
    pub fn clone_image(
        &self,
        (pool, parent, snapshot): (&Self, &str, &str),
        name: &str,
        options: &CreateOptions,
    ) -> Result<(), Error> {
        let data_pool =
            options.data_pool.as_deref().map(|pool| c_string("a pool's name", pool)).transpose()?;
        let parent = c_string("an image's name", parent)?;
        let snapshot = c_string("a snapshot's name", snapshot)?;
        let image = c_string("an image's name", name)?;
        let options = options.collect(data_pool.as_deref(), true);
        check(self.raw.clone_image_from((&pool.raw, &parent, &snapshot), &image, &options))
            .map_err(|answer| Error::refused("clone into the image", name, answer))
    }

    /// Removes an image and its data.
    ///
    /// # Errors
    /// [`Error::is_not_found`]; [`Error::is_busy`] while somebody has it open; `ENOTEMPTY` while it has snapshots.
    pub fn remove_image(&self, name: &str, progress: Progress<'_>) -> Result<(), Error> {
        check(self.raw.remove(&c_string("an image's name", name)?, progress))
            .map_err(|answer| Error::refused("remove the image", name, answer))
    }

    /// Renames an image.
    pub fn rename_image(&self, from: &str, to: &str) -> Result<(), Error> {
        check(self.raw.rename(&c_string("an image's name", from)?, &c_string("an image's name", to)?))
            .map_err(|answer| Error::refused("rename the image", from, answer))
    }

    /// Moves an image out of sight; its clones go on. Known by its [id](crate::Image::id) from then on.
    pub fn move_to_trash(&self, name: &str) -> Result<(), Error> {
        check(self.raw.move_to_trash(&c_string("an image's name", name)?))
            .map_err(|answer| Error::refused("move to the trash the image", name, answer))
    }
    /// Removes an image that is in the trash.
    pub fn remove_from_trash(&self, id: &str) -> Result<(), Error> {
        check(self.raw.remove_from_trash(&c_string("an image's id", id)?))
            .map_err(|answer| Error::refused("remove from the trash the image", id, answer))
    }
    /// Takes an image back out of the trash.
    pub fn restore_from_trash(&self, id: &str, name: &str) -> Result<(), Error> {
        check(
            self.raw.restore_from_trash(&c_string("an image's id", id)?, &c_string("an image's name", name)?),
        )
        .map_err(|answer| Error::refused("restore from the trash the image", id, answer))
    }

    /// The pool's namespaces, without the unnamed one.
    pub fn namespaces(&self) -> Result<Vec<String>, Error> {
        self.raw.namespaces().map_err(|answer| Error::refused("list the namespaces of", &self.name, answer))
    }
    /// Makes a namespace.
    ///
    /// # Errors
    /// [`Error::is_already_there`].
    pub fn create_namespace(&self, name: &str) -> Result<(), Error> {
        check(self.raw.create_namespace(&c_string("a namespace's name", name)?))
            .map_err(|answer| Error::refused("create the namespace", name, answer))
    }
    /// Removes an empty namespace.
    pub fn remove_namespace(&self, name: &str) -> Result<(), Error> {
        check(self.raw.remove_namespace(&c_string("a namespace's name", name)?))
            .map_err(|answer| Error::refused("remove the namespace", name, answer))
    }

    /// The value of an attribute; empty where the object has none of that name.
    ///
    /// # Errors
    /// [`Error::is_not_found`] where there is no such object.
    pub fn attribute(&self, attribute: Attribute<'_>) -> Result<Vec<u8>, Error> {
        let object = c_string("an object's name", attribute.object)?;
        match self.raw.attribute(&object, &c_string("an attribute's name", attribute.name)?) {
            Ok(value) => Ok(value),
            Err(answer) if answer == -i64::from(libc::ENODATA) => Ok(Vec::new()),
            Err(answer) => Err(Error::refused("read an attribute of", attribute.object, answer)),
        }
    }

    /// Changes an attribute from `expected` to `new` in one step of the object's OSD; empty stands for "none" in both.
    /// Returns whether it was `expected`: where it was not, nothing has changed.
    ///
    /// # Errors
    /// [`Error::is_not_found`] where there is no such object.
    pub fn compare_and_set_attribute(
        &self,
        attribute: Attribute<'_>,
        expected: &[u8],
        new: &[u8],
    ) -> Result<bool, Error> {
        let object = c_string("an object's name", attribute.object)?;
        let name = c_string("an attribute's name", attribute.name)?;
        match self.raw.compare_and_set_attribute(&object, &name, (expected, new)) {
            answer if answer >= 0 => Ok(true),
            answer if answer == -libc::ECANCELED => Ok(false),
            answer => Err(Error::refused("change an attribute of", attribute.object, answer)),
        }
    }
}
