//! File systems made and read without mounting them: no root is needed.

use std::{fs::File, path::Path, process::Command};

use crate::command::output_of;

/// Makes an ext4 file system of `bytes` in a new file `image` with a copy of what `folder` holds.
///
/// # Errors
/// If e2fsprogs is missing or fails.
pub fn make(image: &Path, folder: &Path, bytes: u64) -> anyhow::Result<()> {
    File::create(image)?.set_len(bytes)?;
    output_of(
        Command::new(e2fsprogs("mke2fs"))
            .args(["-q", "-F", "-t", "ext4", "-E", "root_owner=0:0,lazy_itable_init=1", "-d"])
            .args([folder, image]),
    )?;
    Ok(())
}

/// Reads the file `path` out of the ext4 file system in `image`.
///
/// # Errors
/// If there is no such file.
pub fn read(image: &Path, path: &str) -> anyhow::Result<Vec<u8>> {
    // debugfs ends well whatever happens, so the file is looked for first.
    let said =
        output_of(Command::new(e2fsprogs("debugfs")).args(["-R", &format!("stat {path}")]).arg(image))?;
    anyhow::ensure!(said.starts_with(b"Inode:"), "there is no {path} on {}", image.display());
    output_of(Command::new(e2fsprogs("debugfs")).args(["-R", &format!("cat {path}")]).arg(image))
}

/// The path of the only file in `folder` whose name ends so.
///
/// # Errors
/// If there is none, or several.
pub fn only_file(image: &Path, folder: &str, ending: &str) -> anyhow::Result<String> {
    let listed =
        output_of(Command::new(e2fsprogs("debugfs")).args(["-R", &format!("ls -p {folder}")]).arg(image))?;
    let listed = String::from_utf8_lossy(&listed);
    // "/inode/mode/user/group/name/size/"
    let names = listed.lines().filter_map(|line| line.split('/').nth(5));
    let found: Vec<&str> = names.filter(|name| name.ends_with(ending)).collect();
    match found[..] {
        [name] => Ok(format!("{folder}/{name}")),
        _ => anyhow::bail!("{} files that end in {ending} in {folder}:\n{listed}", found.len()),
    }
}

/// Copies the file `path` out of the ext4 file system in `image` to a new file, holes and all.
///
/// # Errors
/// If there is no such file, or no room.
pub fn dump(image: &Path, path: &str, to: &Path) -> anyhow::Result<()> {
    let command = format!("dump {path} {}", to.display());
    output_of(Command::new(e2fsprogs("debugfs")).args(["-R", &command]).arg(image))?;
    anyhow::ensure!(to.exists(), "there is no {path} on {}", image.display());
    Ok(())
}

/// Copies an image, holes and all.
///
/// # Errors
/// If there is no room.
pub fn copy(from: &Path, to: &Path) -> anyhow::Result<()> {
    output_of(Command::new("cp").arg("--sparse=always").args([from, to]))?;
    Ok(())
}

/// Adds a copy of `file` as `path` to the ext4 file system in `image`, where its folder exists.
///
/// # Errors
/// If it cannot be written.
pub fn add(image: &Path, file: &Path, path: &str) -> anyhow::Result<()> {
    let command = format!("write {} {path}", file.display());
    output_of(Command::new(e2fsprogs("debugfs")).args(["-w", "-R", &command]).arg(image))?;
    // debugfs ends well whatever happens.
    read(image, path).map(drop)
}

/// Makes the folder `path` on the ext4 file system in `image`, where its own folder exists.
///
/// # Errors
/// If it cannot be made.
pub fn make_folder(image: &Path, path: &str) -> anyhow::Result<()> {
    let debugfs =
        |command: &str| output_of(Command::new(e2fsprogs("debugfs")).args(["-w", "-R", command]).arg(image));
    debugfs(&format!("mkdir {path}"))?;
    // debugfs ends well whatever happens.
    let said = debugfs(&format!("stat {path}"))?;
    let is_folder = String::from_utf8_lossy(&said).contains("Type: directory");
    anyhow::ensure!(is_folder, "cannot make {path} on {}", image.display());
    Ok(())
}

/// Checks the file system in `image` and repairs nothing.
///
/// # Errors
/// If it is not clean.
pub fn check(image: &Path) -> anyhow::Result<()> {
    output_of(Command::new(e2fsprogs("e2fsck")).args(["-f", "-n"]).arg(image))?;
    Ok(())
}

/// They lie in `/usr/sbin`, which is not in everybody's `PATH`.
fn e2fsprogs(program: &str) -> String {
    let sbin = format!("/usr/sbin/{program}");
    if Path::new(&sbin).exists() { sbin } else { program.to_owned() }
}

#[cfg(test)]
mod tests {
    use std::fs;

    use drover_test_prerequisites::skipped;

    use super::*;

    #[test]
    fn a_file_is_found_in_a_folder_that_was_made() {
        if output_of(Command::new(e2fsprogs("debugfs")).arg("-V")).is_err() {
            return skipped("e2fsprogs are not installed");
        }
        let folder = tempfile::tempdir().unwrap();
        let (image, file, empty) =
            (folder.path().join("image"), folder.path().join("file"), folder.path().join("empty"));
        fs::create_dir(&empty).unwrap();
        fs::write(&file, "said").unwrap();
        make(&image, &empty, 1 << 20).unwrap();
        assert!(add(&image, &file, "/made/file").is_err(), "there is no such folder yet");
        make_folder(&image, "/made").unwrap();
        add(&image, &file, "/made/file").unwrap();
        assert_eq!(read(&image, "/made/file").unwrap(), b"said");
        check(&image).unwrap();
        assert!(make_folder(&image, "/not/there").is_err());
    }
}
