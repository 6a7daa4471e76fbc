//! Disk images: what volumes are cloned from.

use std::fmt;

use drover_ids::{ImageDigest, OperationId};
use drover_units::Bytes;

use crate::{Name, Secret, WallTime};

/// How an image's file says what is on the disk.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ImageFormat {
    /// The disk's bytes.
    Raw,
    /// QEMU's format, version 2 or 3, without a backing file.
    Qcow2,
}

/// Where an image's bytes come from.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum ImageSource {
    /// A client sends them.
    Upload,
    /// The control plane fetches them. The URL may hold credentials: it is shown without them, and forgotten once it
    /// has been used.
    Url(Secret),
    /// Another image's.
    Copy(Name),
}

impl ImageSource {
    /// The same, without what must not be kept longer than it is needed.
    #[must_use]
    pub fn without_credentials(&self) -> Self {
        match self {
            Self::Url(url) => Self::Url(Secret::new(public_url(url.expose()))),
            other => other.clone(),
        }
    }
}

impl fmt::Display for ImageSource {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Upload => f.write_str("upload"),
            Self::Url(url) => f.write_str(&public_url(url.expose())),
            Self::Copy(image) => write!(f, "copy of {image}"),
        }
    }
}

/// A URL without user, password, query and fragment: each may hold a credential.
fn public_url(url: &str) -> String {
    let Some((scheme, rest)) = url.split_once("://") else { return String::new() };
    let rest = rest.split(['?', '#']).next().unwrap_or_default();
    let (authority, path) =
        rest.split_once('/').map_or((rest, None), |(authority, path)| (authority, Some(path)));
    let host = authority.rsplit('@').next().unwrap_or_default();
    match path {
        Some(path) => format!("{scheme}://{host}/{path}"),
        None => format!("{scheme}://{host}"),
    }
}

/// Whether an image can be used.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum DiskImageState {
    /// Its bytes are on their way.
    Importing,
    /// Volumes can be cloned from it.
    Ready,
    /// It is being removed.
    Deleting,
}

/// A disk image, as stored. Images with the same digest in the same pool share one object there.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DiskImage {
    /// Unique among images, boot images included.
    pub name: Name,
    /// Where the object is.
    pub pool: Name,
    /// Of the file it was made from; names the object.
    pub digest: ImageDigest,
    /// Size of the file it was made from. Zero: not known yet.
    pub file_size: Bytes,
    /// Size of the disk. Zero: not known yet.
    pub size: Bytes,
    /// The file's format. `None`: its first bytes will tell.
    pub format: Option<ImageFormat>,
    /// Where the bytes come from.
    pub source: ImageSource,
    /// Bytes of the file that will not have to be sent again.
    pub received: Bytes,
    /// Whether it can be used.
    pub state: DiskImageState,
    /// What works on it.
    pub operation: Option<OperationId>,
    /// When it was created.
    pub created_at: WallTime,
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check(url: &str, expect: &str) {
        let source = ImageSource::Url(Secret::new(url));
        assert_eq!(source.to_string(), expect);
        assert_eq!(source.without_credentials().to_string(), expect);
        assert!(!format!("{source:?}").contains("pass"), "{source:?}");
    }

    #[test]
    fn a_url_is_shown_without_credentials() {
        check("https://example.org/a/b.qcow2", "https://example.org/a/b.qcow2");
        check("http://user:pass@example.org:8080/b?token=pass#pass", "http://example.org:8080/b");
        check("http://us@er:pass@example.org", "http://example.org");
        check("pass", "");
    }
}
