//! Linux guests: building them, and what they are told.

use std::{
    fs,
    io::{self, Read as _},
    path::Path,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
};

use anyhow::{Context as _, bail};
use drover_client::api;
use drover_image_build::{BuildError, Built, Order, Recipe, build};

use crate::{
    arguments::guest::{Build, CloudInit, Debian},
    output::{Format, print_note},
    progress::build_spinner,
};

/// Longest file that is read for a guest: above what any guest is told, so that the server's own limit is the one that is
/// met, with its reason.
const FILE_BYTES_MAX: u64 = 1 << 20;

/// Builds a guest. The server is not needed.
pub(crate) fn run_build(command: Build, format: Format) -> anyhow::Result<()> {
    let Build::Debian(arguments) = command;
    let built = build_until_interrupted(&arguments)?;
    let files = [&built.root, &built.kernel, &built.initrd].map(|path| path.display().to_string());
    print_note(format, &format!("built {}", files.join(", ")))
}

fn build_until_interrupted(arguments: &Debian) -> anyhow::Result<Built> {
    let defaults = Recipe::default();
    let recipe = Recipe {
        suite: arguments.suite.into(),
        mirror: arguments.mirror.clone().unwrap_or(defaults.mirror),
        security_mirror: arguments.security_mirror.clone().unwrap_or(defaults.security_mirror),
        packages: arguments.packages.clone(),
        disk_bytes: arguments.size.get(),
    };
    let output = arguments.folder.clone();
    let cancelled = Arc::new(AtomicBool::new(false));
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    let ours = Arc::clone(&cancelled);
    runtime.block_on(async move {
        let spinner = build_spinner();
        let shown = spinner.clone();
        let mut work = tokio::task::spawn_blocking(move || {
            let progress = |step: &str| shown.set_message(step.to_owned());
            build(&Order { recipe, output, progress: &progress, cancelled: &ours })
        });
        let outcome = tokio::select! {
            ended = &mut work => ended,
            _ = tokio::signal::ctrl_c() => {
                spinner.set_message("interrupted: cleaning up");
                cancelled.store(true, Ordering::Relaxed);
                work.await
            }
        };
        spinner.finish_and_clear();
        match outcome.context("the build broke off")? {
            Err(BuildError::Cancelled) => Err(crate::progress::BuildInterrupted.into()),
            other => Ok(other?),
        }
    })
}

/// What a VM's cloud-init is told, read from the files that were named. Nothing named: nothing told.
pub(super) fn cloud_init(arguments: &CloudInit) -> anyhow::Result<Option<api::CloudInit>> {
    let CloudInit { hostname, ssh_keys, user_data, network_config } = arguments;
    if hostname.is_none() && ssh_keys.is_empty() && user_data.is_none() && network_config.is_none() {
        return Ok(None);
    }
    let mut keys = Vec::new();
    for file in ssh_keys {
        let text = read("--ssh-key", file)?;
        // As in authorized_keys: one a line, and comments.
        let lines = text.lines().map(str::trim).filter(|line| !line.is_empty() && !line.starts_with('#'));
        keys.extend(lines.map(str::to_owned));
    }
    let optional =
        |flag, file: &Option<_>| file.as_deref().map_or(Ok(String::new()), |file| read(flag, file));
    Ok(Some(api::CloudInit {
        hostname: hostname.clone().unwrap_or_default(),
        ssh_keys: keys,
        user_data: optional("--user-data", user_data)?,
        network_config: optional("--network-config", network_config)?,
    }))
}

fn read(flag: &str, file: &Path) -> anyhow::Result<String> {
    let mut text = String::new();
    let read = if file == Path::new("-") {
        io::stdin().take(FILE_BYTES_MAX + 1).read_to_string(&mut text)
    } else {
        fs::File::open(file).and_then(|file| file.take(FILE_BYTES_MAX + 1).read_to_string(&mut text))
    };
    read.with_context(|| format!("{flag}: cannot read {}", file.display()))?;
    if text.len() as u64 > FILE_BYTES_MAX {
        bail!("{flag}: {} is larger than a guest can be told", file.display());
    }
    Ok(text)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_told_comes_from_the_files_that_are_named() {
        let folder = tempfile::tempdir().expect("a folder");
        let path = |name: &str, text: &str| {
            let path = folder.path().join(name);
            fs::write(&path, text).expect("written");
            path
        };
        assert_eq!(cloud_init(&CloudInit::default()).expect("nothing"), None);
        let arguments = CloudInit {
            hostname: None,
            ssh_keys: vec![path("keys", "# mine\nssh-ed25519 AAAA a\n\nssh-rsa BBBB b\n")],
            user_data: Some(path("user-data", "#!/bin/sh\n")),
            network_config: None,
        };
        let told = cloud_init(&arguments).expect("read").expect("something");
        assert_eq!(told.ssh_keys, ["ssh-ed25519 AAAA a", "ssh-rsa BBBB b"]);
        assert_eq!((told.user_data.as_str(), told.network_config.as_str()), ("#!/bin/sh\n", ""));
        let missing = CloudInit { user_data: Some(folder.path().join("absent")), ..CloudInit::default() };
        let error = format!("{:#}", cloud_init(&missing).expect_err("absent"));
        assert!(error.starts_with("--user-data: cannot read"), "{error}");
    }
}
