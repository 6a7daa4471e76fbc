//! Commands on images: kernels and disks.

use std::path::Path;

use anyhow::{Context as _, bail};
use drover_client::{
    Error,
    api::{
        CopyDiskImageRequest, ImageFormat, ImportDiskImageRequest, Operation, OperationState,
        import_disk_image_request::Source,
    },
};
use drover_units::Bytes;
use sha2::{Digest as _, Sha256};
use tokio::{fs::File, io::AsyncReadExt as _};

use crate::{
    Session, arguments,
    arguments::{DiskFormat, ImageCommand, ImageKind, ImportImage},
    output::{ImageRow, print_details, print_note, print_row, print_rows},
    progress::{hash_bar, upload_bar},
};

use super::{import, rows, settle};

/// How much of a file says what it is.
const HEAD_BYTES: u64 = 0x206;
/// How kernels and initramfs begin: an ELF file; a cpio archive, or one that gzip, xz, zstd, lz4 or bzip2 has compressed.
const BOOT_IMAGES: [&[u8]; 7] = [
    b"\x7fELF",
    b"07070",
    &[0x1f, 0x8b],
    &[0xfd, b'7', b'z', b'X', b'Z', 0],
    &[0x28, 0xb5, 0x2f, 0xfd],
    &[0x02, 0x21, 0x4c, 0x18],
    b"BZh",
];
/// What a bzImage has at this place (Linux, Documentation/arch/x86/boot.rst).
const BZIMAGE: (usize, &[u8]) = (0x202, b"HdrS");
/// Bytes read at a time for the hash.
const BLOCK_BYTES: usize = 1 << 20;

pub(super) async fn run(session: &Session, command: ImageCommand) -> anyhow::Result<()> {
    let client = &session.client;
    match command {
        ImageCommand::Import(arguments) => begin_import(session, arguments).await,
        ImageCommand::List => {
            let mut images = rows::<_, ImageRow>(client.list_images().await?);
            images.extend(rows::<_, ImageRow>(client.list_disk_images().await?));
            images.sort_by(|a, b| a.name.cmp(&b.name));
            print_rows(session.format, &images)
        }
        ImageCommand::Show { image } => match boot_image(session, &image).await? {
            Some(row) => print_details(session.format, &row),
            None => print_details(session.format, &ImageRow::from(client.get_disk_image(&image).await?)),
        },
        ImageCommand::Copy { image, name, pool } => {
            let request = CopyDiskImageRequest { image, name, pool, ..CopyDiskImageRequest::default() };
            let operation = client.copy_disk_image(request).await?;
            settle_and_show(session, operation).await
        }
        ImageCommand::Build(_) => bail!("a build needs no server: this command does not come here"),
        ImageCommand::Delete { image } => {
            let deleted = || print_note(session.format, &format!("image {image} is deleted"));
            if boot_image(session, &image).await?.is_some() {
                client.delete_image(&image).await?;
                return deleted();
            }
            match settle(session, client.delete_disk_image(&image).await?).await? {
                Some(_) => deleted(),
                None => Ok(()),
            }
        }
    }
}

async fn boot_image(session: &Session, name: &str) -> anyhow::Result<Option<ImageRow>> {
    let images = session.client.list_images().await?;
    Ok(images.into_iter().find(|image| image.name == name).map(ImageRow::from))
}

async fn settle_and_show(session: &Session, operation: Operation) -> anyhow::Result<()> {
    match settle(session, operation).await? {
        Some(ended) => {
            let image = session.client.get_disk_image(&ended.subject_name).await?;
            print_row(session.format, &ImageRow::from(image))
        }
        None => Ok(()),
    }
}

async fn begin_import(session: &Session, arguments: ImportImage) -> anyhow::Result<()> {
    if arguments.source.starts_with("http://") || arguments.source.starts_with("https://") {
        let Some(sha256) = arguments.sha256.clone() else {
            let message =
                "--sha256: a URL needs the SHA-256 of its file; whoever publishes it says it".to_owned();
            return Err(Error::InvalidArgument { message }.into());
        };
        let url = arguments.source.clone();
        let operation = ask(session, &arguments, sha256, Source::Url(url)).await?;
        return settle_and_show(session, operation).await;
    }
    let path = Path::new(&arguments.source);
    let mut file = File::open(path).await.with_context(|| format!("cannot read {}", path.display()))?;
    let mut head = Vec::new();
    (&mut file)
        .take(HEAD_BYTES)
        .read_to_end(&mut head)
        .await
        .with_context(|| format!("cannot read {}", path.display()))?;
    let kind = arguments.kind.unwrap_or_else(|| kind_of(&head));
    match kind {
        ImageKind::Boot => {
            let ImportImage { name, pool, .. } = arguments;
            let boot = arguments::Import { name, file: path.to_owned(), pool };
            import::image(session, boot).await
        }
        ImageKind::Disk => upload(session, &arguments, path).await,
    }
}

/// What a file is that begins like this.
fn kind_of(head: &[u8]) -> ImageKind {
    let is_bzimage = head.get(BZIMAGE.0..).is_some_and(|rest| rest.starts_with(BZIMAGE.1));
    let is_boot = is_bzimage || BOOT_IMAGES.iter().any(|magic| head.starts_with(magic));
    if is_boot { ImageKind::Boot } else { ImageKind::Disk }
}

async fn ask(
    session: &Session,
    arguments: &ImportImage,
    sha256: String,
    source: Source,
) -> anyhow::Result<Operation> {
    let format = match arguments.format {
        None => ImageFormat::Unspecified,
        Some(DiskFormat::Raw) => ImageFormat::Raw,
        Some(DiskFormat::Qcow2) => ImageFormat::Qcow2,
    };
    let request = ImportDiskImageRequest {
        name: arguments.name.clone(),
        pool: arguments.pool.clone(),
        sha256,
        format: format.into(),
        source: Some(source),
        ..ImportDiskImageRequest::default()
    };
    Ok(session.client.import_disk_image(request).await?)
}

/// Sends a file, unless the pool has it already.
async fn upload(session: &Session, arguments: &ImportImage, path: &Path) -> anyhow::Result<()> {
    let (sha256, size) = hash(&arguments.name, path).await?;
    if let Some(expected) =
        arguments.sha256.as_deref().filter(|expected| !expected.eq_ignore_ascii_case(&sha256))
    {
        let message = format!("--sha256: {} has {sha256}, not {expected}", path.display());
        return Err(Error::InvalidArgument { message }.into());
    }
    let operation = ask(session, arguments, sha256, Source::UploadBytes(size.get())).await?;
    if operation.state() == OperationState::Running {
        let file = File::open(path).await.with_context(|| format!("cannot read {}", path.display()))?;
        let bar = upload_bar(&arguments.name, size);
        let sent =
            session.client.upload_disk_image(&arguments.name, file, |there| bar.set_position(there.get()));
        let sent = tokio::select! {
            sent = sent => sent,
            interrupted = tokio::signal::ctrl_c() => {
                interrupted.context("Ctrl-C cannot be handled")?;
                bar.finish_and_clear();
                bail!("interrupted; `drover operation cancel {}` takes the import back", operation.id);
            }
        };
        bar.finish_and_clear();
        sent?;
    }
    settle_and_show(session, operation).await
}

/// The file's SHA-256 and size.
async fn hash(name: &str, path: &Path) -> anyhow::Result<(String, Bytes)> {
    let describe = || format!("cannot read {}", path.display());
    let mut file = File::open(path).await.with_context(describe)?;
    let metadata = file.metadata().await.with_context(describe)?;
    if !metadata.is_file() {
        bail!("{} is not a regular file", path.display());
    }
    let bar = hash_bar(name, Bytes::new(metadata.len()));
    let mut hash = Sha256::new();
    let mut block = vec![0; BLOCK_BYTES];
    let mut size = 0_u64;
    loop {
        let count = file.read(&mut block).await.with_context(describe)?;
        if count == 0 {
            break;
        }
        hash.update(&block[..count]);
        size += count as u64;
        bar.set_position(size);
    }
    bar.finish_and_clear();
    let sha256 = hash.finalize().iter().map(|byte| format!("{byte:02x}")).collect();
    Ok((sha256, Bytes::new(size)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_file_is_taken_for_what_its_first_bytes_say() {
        let bzimage = [&[0; 0x202][..], b"HdrS"].concat();
        let cpio = b"070701";
        for head in [&bzimage[..], cpio, b"\x7fELF\x02"] {
            assert_eq!(kind_of(head), ImageKind::Boot);
        }
        let disk = [0; 0x206];
        for head in [&disk[..], b"QFI\xfb", b""] {
            assert_eq!(kind_of(head), ImageKind::Disk);
        }
    }
}
