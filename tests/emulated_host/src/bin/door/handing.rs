//! What a jailed vmmd cannot open, opened for it as the node agent does.

use std::{
    fs::{File, OpenOptions},
    io,
    net::{TcpListener, TcpStream},
    os::fd::{AsFd as _, OwnedFd},
    path::Path,
};

use drover_dir_volume::{DirPool, open_record};
use drover_handover::{connection_name, hand_over, listener_name, queue_name, record_name};
use drover_tap::{Tap, TapName};
use drover_test_emulated_host::door::Handed;

/// Opens everything and hands it over, under the names that calls will use.
pub(crate) fn hand_over_all(run_dir: &str, files: &[Handed]) -> io::Result<()> {
    let mut opened = Vec::new();
    for file in files {
        open(file, &mut opened)?;
    }
    hand_over(Path::new(run_dir), opened.iter().map(|(name, file)| (name.as_str(), file.as_fd())))
}

fn open(file: &Handed, opened: &mut Vec<(String, OwnedFd)>) -> io::Result<()> {
    match file {
        Handed::Image(path) => opened.push((path.clone(), File::open(path)?.into())),
        Handed::Volume { path, read_only } => {
            let volume = OpenOptions::new().read(true).write(!read_only).open(path)?;
            opened.push((path.clone(), volume.into()));
            if !read_only {
                let record = open_record(&DirPool::sidecar_of(Path::new(path)))?;
                opened.push((record_name(path), record.into()));
            }
        }
        Handed::Tap { name, queues } => {
            let tap: TapName = name.parse().map_err(io::Error::other)?;
            for (n, queue) in (0..).zip(Tap::open(&tap, *queues).map_err(io::Error::other)?) {
                opened.push((queue_name(name, n), queue.into()));
            }
        }
        Handed::Listener(address) => {
            opened.push((listener_name(&address.to_string()), TcpListener::bind(address)?.into()));
        }
        Handed::Connection(address) => {
            opened.push((connection_name(&address.to_string()), TcpStream::connect(address)?.into()));
        }
    }
    Ok(())
}
