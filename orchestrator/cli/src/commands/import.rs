//! Sending files.

use std::path::Path;

use anyhow::{Context as _, bail};
use drover_client::{Error, Import};
use drover_units::{Bytes, SECTOR_SIZE};
use tokio::fs::File;

use crate::{
    Session, arguments,
    output::{ImageRow, VolumeRow, print_row},
    progress::upload_bar,
};

pub(super) async fn volume(
    session: &Session,
    arguments: arguments::Import,
    size: Option<Bytes>,
) -> anyhow::Result<()> {
    let (file, mut import) = open(arguments).await?;
    let length = import.size;
    // A volume has whole sectors, a file need not.
    import.size = size.unwrap_or_else(|| Bytes::new(length.get().next_multiple_of(SECTOR_SIZE)));
    if import.size < length {
        return Err(Error::InvalidArgument {
            message: format!("--size: {} is less than the {length} of the file", import.size),
        }
        .into());
    }
    let bar = upload_bar(&import.name, length);
    let volume = session.client.import_volume(import, file, |sent| bar.set_position(sent.get())).await;
    bar.finish_and_clear();
    print_row(session.format, &VolumeRow::from(volume?))
}

pub(super) async fn image(session: &Session, arguments: arguments::Import) -> anyhow::Result<()> {
    let (file, import) = open(arguments).await?;
    let bar = upload_bar(&import.name, import.size);
    let image = session.client.import_image(import, file, |sent| bar.set_position(sent.get())).await;
    bar.finish_and_clear();
    print_row(session.format, &ImageRow::from(image?))
}

async fn open(arguments: arguments::Import) -> anyhow::Result<(File, Import)> {
    let path: &Path = &arguments.file;
    let describe = || format!("cannot read {}", path.display());
    let file = File::open(path).await.with_context(describe)?;
    let metadata = file.metadata().await.with_context(describe)?;
    if !metadata.is_file() {
        bail!("{} is not a regular file", path.display());
    }
    let size = Bytes::new(metadata.len());
    Ok((file, Import { name: arguments.name, pool: arguments.pool, size }))
}
