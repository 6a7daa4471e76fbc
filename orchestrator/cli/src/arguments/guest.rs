//! Linux guests: what they are built of and what they are told.

use std::path::PathBuf;

use clap::{Args, Subcommand, ValueEnum};
use drover_image_build::Suite;
use drover_units::Bytes;

/// What cloud-init in the guest is told. With any of these the VM gets a seed disk.
#[derive(Debug, Default, Args)]
#[command(next_help_heading = "What cloud-init in the guest is told")]
pub(crate) struct CloudInit {
    /// Name that the guest gives itself, if it is not to be the VM's
    #[arg(long, value_name = "NAME")]
    pub(crate) hostname: Option<String>,
    /// File with public keys that may log in, such as ~/.ssh/id_ed25519.pub; may be given several times
    #[arg(long = "ssh-key", value_name = "FILE")]
    pub(crate) ssh_keys: Vec<PathBuf>,
    /// File with a cloud-config or a script; - for standard input
    #[arg(long, value_name = "FILE")]
    pub(crate) user_data: Option<PathBuf>,
    /// File with the network configuration, version 1 or 2
    #[arg(long, value_name = "FILE")]
    pub(crate) network_config: Option<PathBuf>,
}

/// Distributions.
#[derive(Debug, Subcommand)]
pub(crate) enum Build {
    /// Debian with systemd and cloud-init: a root disk, a kernel and an initramfs
    Debian(Debian),
}

#[derive(Debug, Args)]
pub(crate) struct Debian {
    /// Folder for root.raw, vmlinuz and initrd
    pub(crate) folder: PathBuf,
    /// Release
    #[arg(long, value_enum, default_value_t = Release::Bookworm)]
    pub(crate) suite: Release,
    /// Size of the root disk, which grows with its volume
    #[arg(long, default_value = "2G")]
    pub(crate) size: Bytes,
    /// Package to add; may be given several times
    #[arg(long = "include", value_name = "PACKAGE", value_delimiter = ',')]
    pub(crate) packages: Vec<String>,
    /// Where packages come from
    #[arg(long, value_name = "URL")]
    pub(crate) mirror: Option<String>,
    /// Where security updates come from
    #[arg(long, value_name = "URL")]
    pub(crate) security_mirror: Option<String>,
}

#[derive(Clone, Copy, Debug, ValueEnum)]
pub(crate) enum Release {
    /// Debian 12
    Bookworm,
    /// Debian 13
    Trixie,
}

impl From<Release> for Suite {
    fn from(release: Release) -> Self {
        match release {
            Release::Bookworm => Self::Bookworm,
            Release::Trixie => Self::Trixie,
        }
    }
}
