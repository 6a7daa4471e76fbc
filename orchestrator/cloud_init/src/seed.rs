//! What goes onto the disk.

use std::fmt;

use serde_json::json;

use crate::iso9660;

/// Longest user data. Four times what the large clouds take; with everything else it makes a disk well below a megabyte,
/// which fits a message to an agent.
pub const USER_DATA_BYTES_MAX: usize = 64 << 10;
/// Longest network configuration: some hundred interfaces.
pub const NETWORK_CONFIG_BYTES_MAX: usize = 32 << 10;
/// Most SSH keys.
pub const SSH_KEYS_MAX: usize = 64;
/// Longest SSH key with its comment; an RSA key of 16,384 bits has 2.8 KiB.
pub const SSH_KEY_BYTES_MAX: usize = 4 << 10;
/// Longest host name (RFC 1035, section 2.3.4).
pub const HOSTNAME_BYTES_MAX: usize = 253;
/// Longest part of a host name between dots.
const LABEL_BYTES_MAX: usize = 63;

/// What makes cloud-init do something with user data: it says so in its first line.
const USER_DATA_STARTS: [&str; 8] = [
    "#!",
    "#cloud-config",
    "#cloud-boothook",
    "#include",
    "#part-handler",
    "## template:",
    "Content-Type:",
    "MIME-Version:",
];

/// What a client asks for. Empty strings: nothing of the kind.
#[derive(Clone, Default, PartialEq, Eq)]
pub struct Unchecked {
    /// The name that the guest gives itself.
    pub hostname: String,
    /// Public keys that may log in as the image's default user, a line of `authorized_keys` each.
    pub ssh_keys: Vec<String>,
    /// A cloud-config, a script, or a MIME message of several.
    pub user_data: String,
    /// Network configuration, version 1 or 2.
    pub network_config: String,
}

/// Shows how much there is, not what.
impl fmt::Debug for Unchecked {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Unchecked")
            .field("hostname", &self.hostname)
            .field("ssh_keys", &self.ssh_keys.len())
            .field("user_data_bytes", &self.user_data.len())
            .field("network_config_bytes", &self.network_config.len())
            .finish()
    }
}

/// Something that no guest could use.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{field}: {problem}; expected {valid}")]
pub struct InvalidSeed {
    /// The field of [`Unchecked`].
    pub field: &'static str,
    /// What is wrong with it, without repeating it.
    pub problem: String,
    /// What would be right.
    pub valid: String,
}

/// What a guest is told, checked.
#[derive(Clone, PartialEq, Eq)]
pub struct Seed(Unchecked);

impl fmt::Debug for Seed {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("Seed").field(&self.0).finish()
    }
}

impl TryFrom<Unchecked> for Seed {
    type Error = InvalidSeed;

    fn try_from(raw: Unchecked) -> Result<Self, InvalidSeed> {
        check_hostname(&raw.hostname)?;
        if raw.ssh_keys.len() > SSH_KEYS_MAX {
            let problem = format!("there are {}", raw.ssh_keys.len());
            return Err(invalid("ssh_keys", problem, format!("at most {SSH_KEYS_MAX}")));
        }
        for (n, key) in raw.ssh_keys.iter().enumerate() {
            check_ssh_key(n, key)?;
        }
        check_text("user_data", &raw.user_data, USER_DATA_BYTES_MAX)?;
        if !raw.user_data.is_empty() && !USER_DATA_STARTS.iter().any(|start| raw.user_data.starts_with(start))
        {
            let problem = "cloud-init would ignore what its first line does not announce".to_owned();
            return Err(invalid("user_data", problem, format!("one of: {}", USER_DATA_STARTS.join(", "))));
        }
        check_text("network_config", &raw.network_config, NETWORK_CONFIG_BYTES_MAX)?;
        Ok(Self(raw))
    }
}

impl Seed {
    /// What was asked for.
    pub fn fields(&self) -> &Unchecked {
        &self.0
    }

    /// The disk for the instance `instance_id`, whose name is `name` where nothing else was asked for. cloud-init runs
    /// what runs once again when it sees another instance id.
    pub fn image(&self, instance_id: &str, name: &str) -> Vec<u8> {
        let meta_data = self.meta_data(instance_id, name);
        let user_data = match self.0.user_data.as_str() {
            // The file must be there and say what it is.
            "" => "#cloud-config\n{}\n",
            text => text,
        };
        let mut files = vec![("meta-data", meta_data.as_bytes()), ("user-data", user_data.as_bytes())];
        if !self.0.network_config.is_empty() {
            files.insert(1, ("network-config", self.0.network_config.as_bytes()));
        }
        iso9660::image("CIDATA", &files)
    }

    /// YAML, of which JSON is a part.
    fn meta_data(&self, instance_id: &str, name: &str) -> String {
        let hostname = if self.0.hostname.is_empty() { name } else { &self.0.hostname };
        let mut data = json!({ "instance-id": instance_id, "local-hostname": hostname });
        if !self.0.ssh_keys.is_empty() {
            data["public-keys"] = json!(self.0.ssh_keys);
        }
        format!("{data:#}\n")
    }
}

fn check_hostname(hostname: &str) -> Result<(), InvalidSeed> {
    let label = |label: &str| {
        (1..=LABEL_BYTES_MAX).contains(&label.len())
            && label.bytes().all(|c| c.is_ascii_alphanumeric() || c == b'-')
            && !label.starts_with('-')
            && !label.ends_with('-')
    };
    if hostname.is_empty() || (hostname.len() <= HOSTNAME_BYTES_MAX && hostname.split('.').all(label)) {
        return Ok(());
    }
    let problem = format!("{} bytes that are no host name", hostname.len());
    Err(invalid(
        "hostname",
        problem,
        "letters, digits and hyphens, in parts of at most 63 separated by dots".to_owned(),
    ))
}

fn check_ssh_key(n: usize, key: &str) -> Result<(), InvalidSeed> {
    let kind = key.split(' ').next().unwrap_or_default();
    let known = kind.starts_with("ssh-") || kind.starts_with("ecdsa-sha2-") || kind.starts_with("sk-");
    let one_line = key.chars().all(|c| !c.is_control());
    if known && one_line && key.len() <= SSH_KEY_BYTES_MAX && key.contains(' ') {
        return Ok(());
    }
    let problem = format!("key {n} is none");
    let valid = format!(
        "a public key such as 'ssh-ed25519 AAAA… somebody', at most {SSH_KEY_BYTES_MAX} bytes on one line"
    );
    Err(invalid("ssh_keys", problem, valid))
}

fn check_text(field: &'static str, text: &str, bytes_max: usize) -> Result<(), InvalidSeed> {
    if text.len() > bytes_max {
        return Err(invalid(
            field,
            format!("it has {} bytes", text.len()),
            format!("at most {bytes_max} bytes"),
        ));
    }
    if text.contains('\0') {
        return Err(invalid(field, "it has a NUL byte".to_owned(), "text".to_owned()));
    }
    Ok(())
}

fn invalid(field: &'static str, problem: String, valid: String) -> InvalidSeed {
    InvalidSeed { field, problem, valid }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn valid() -> Unchecked {
        Unchecked {
            hostname: "web-1.example.org".to_owned(),
            ssh_keys: vec!["ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAIPublic ann@desk".to_owned()],
            user_data: "#cloud-config\npassword: s3cret\n".to_owned(),
            network_config: "version: 2\n".to_owned(),
        }
    }

    #[test]
    fn what_no_guest_could_use_is_refused_by_field() {
        let check = |change: fn(&mut Unchecked), field: &str| {
            let mut raw = valid();
            change(&mut raw);
            match Seed::try_from(raw) {
                Ok(_) => assert_eq!(field, "", "accepted"),
                Err(error) => {
                    assert_eq!(error.field, field, "{error}");
                    assert!(error.to_string().len() < 300, "{error}");
                }
            }
        };
        check(|_| {}, "");
        check(|raw| *raw = Unchecked::default(), "");
        check(|raw| raw.hostname = "-web".to_owned(), "hostname");
        check(|raw| raw.hostname = "web..org".to_owned(), "hostname");
        check(|raw| raw.hostname = "w\nb".to_owned(), "hostname");
        check(|raw| raw.hostname = "a".repeat(64), "hostname");
        check(|raw| raw.hostname = vec!["a"; 128].join("."), "hostname");
        check(|raw| raw.ssh_keys[0] = "ssh-rsa".to_owned(), "ssh_keys");
        check(|raw| raw.ssh_keys[0].push_str("\nssh-rsa AAAA other"), "ssh_keys");
        check(|raw| raw.ssh_keys[0] = "-----BEGIN OPENSSH PRIVATE KEY-----".to_owned(), "ssh_keys");
        check(|raw| raw.ssh_keys = vec![raw.ssh_keys[0].clone(); SSH_KEYS_MAX + 1], "ssh_keys");
        check(|raw| raw.user_data = "password: s3cret\n".to_owned(), "user_data");
        check(|raw| raw.user_data = format!("#!{}", "a".repeat(USER_DATA_BYTES_MAX)), "user_data");
        check(|raw| raw.user_data = "#!/bin/sh\n\0".to_owned(), "user_data");
        check(|raw| raw.network_config = "a".repeat(NETWORK_CONFIG_BYTES_MAX + 1), "network_config");
    }

    #[test]
    fn neither_debug_nor_an_error_shows_user_data() {
        let seed = Seed::try_from(valid()).expect("valid");
        assert!(!format!("{seed:?} {:?}", seed.fields()).contains("s3cret"));
        let raw = Unchecked { user_data: "s3cret".to_owned(), ..valid() };
        assert!(!Seed::try_from(raw).expect_err("refused").to_string().contains("s3cret"));
    }

    #[test]
    fn a_seed_is_always_the_same_disk_and_another_is_another() {
        let seed = Seed::try_from(valid()).expect("valid");
        assert_eq!(seed.image("i-1", "vm"), seed.image("i-1", "vm"));
        assert_ne!(seed.image("i-1", "vm"), seed.image("i-2", "vm"));
    }

    #[test]
    fn the_largest_seed_fits_a_message() {
        let largest = Unchecked {
            hostname: String::new(),
            ssh_keys: vec![format!("ssh-rsa {}", "A".repeat(SSH_KEY_BYTES_MAX - 8)); SSH_KEYS_MAX],
            user_data: format!("#!{}", "a".repeat(USER_DATA_BYTES_MAX - 2)),
            network_config: "a".repeat(NETWORK_CONFIG_BYTES_MAX),
        };
        let image = Seed::try_from(largest).expect("valid").image("i", "vm");
        assert!(image.len() < 1 << 20, "{}", image.len());
    }
}
