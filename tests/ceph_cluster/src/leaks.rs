//! What a suite may have left behind in a cluster.

use std::fmt;

use serde::{Deserialize, de::DeserializeOwned};

use crate::{cluster::CephCluster, error::CephError};

/// Things that should not outlive the test that made them, each as one line that names it.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct LeakReport {
    /// `pool/image` or `pool/namespace/image`.
    pub images: Vec<String>,
    /// Images in the trash.
    pub trash: Vec<String>,
    /// `image: locker address`.
    pub locks: Vec<String>,
    /// `image: client address`.
    pub watchers: Vec<String>,
    /// Blocklisted addresses.
    pub blocklist: Vec<String>,
}

impl LeakReport {
    /// Whether nothing is left.
    pub fn is_empty(&self) -> bool {
        self.parts().iter().all(|(_, lines)| lines.is_empty())
    }

    fn parts(&self) -> [(&'static str, &[String]); 5] {
        [
            ("image", &self.images),
            ("in the trash", &self.trash),
            ("lock", &self.locks),
            ("watcher", &self.watchers),
            ("blocklist entry", &self.blocklist),
        ]
    }

    /// Looks through every pool and namespace.
    pub(crate) fn collect(cluster: &CephCluster) -> Result<Self, CephError> {
        let mut report = Self::default();
        let entries: Vec<Blocklisted> =
            read(cluster, "ceph", &["osd", "blocklist", "ls", "--format", "json"])?;
        report.blocklist.extend(entries.into_iter().map(|entry| entry.addr));
        let pools: Vec<String> = read(cluster, "ceph", &["osd", "pool", "ls", "--format", "json"])?;
        for pool in pools {
            report.add_folder(cluster, &pool)?;
            let namespaces: Vec<Named> =
                read(cluster, "rbd", &["namespace", "ls", &pool, "--format", "json"])?;
            for namespace in namespaces {
                report.add_folder(cluster, &format!("{pool}/{}", namespace.name))?;
            }
        }
        Ok(report)
    }

    /// Adds what a pool, or a namespace as `pool/namespace`, holds.
    fn add_folder(&mut self, cluster: &CephCluster, folder: &str) -> Result<(), CephError> {
        let trash: Vec<Named> = read(cluster, "rbd", &["trash", "ls", "--all", folder, "--format", "json"])?;
        self.trash.extend(trash.into_iter().map(|image| format!("{folder}/{}", image.name)));
        let images: Vec<String> = read(cluster, "rbd", &["ls", folder, "--format", "json"])?;
        for image in images {
            let image = format!("{folder}/{image}");
            let status: Status = read(cluster, "rbd", &["status", &image, "--format", "json"])?;
            self.watchers
                .extend(status.watchers.into_iter().map(|watcher| format!("{image}: {}", watcher.address)));
            let locks: Vec<Lock> = read(cluster, "rbd", &["lock", "ls", &image, "--format", "json"])?;
            self.locks
                .extend(locks.into_iter().map(|lock| format!("{image}: {} {}", lock.locker, lock.address)));
            self.images.push(image);
        }
        Ok(())
    }
}

impl fmt::Display for LeakReport {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.is_empty() {
            return formatter.write_str("nothing is left");
        }
        let lines =
            self.parts().into_iter().flat_map(|(what, lines)| lines.iter().map(move |line| (what, line)));
        for (at, (what, line)) in lines.enumerate() {
            let separator = if at == 0 { "" } else { "; " };
            write!(formatter, "{separator}{what} {line}")?;
        }
        Ok(())
    }
}

#[derive(Deserialize)]
struct Named {
    name: String,
}

#[derive(Deserialize)]
struct Blocklisted {
    addr: String,
}

#[derive(Deserialize)]
struct Status {
    #[serde(default)]
    watchers: Vec<Watcher>,
}

#[derive(Deserialize)]
struct Watcher {
    address: String,
}

#[derive(Deserialize)]
struct Lock {
    locker: String,
    address: String,
}

fn read<T: DeserializeOwned>(
    cluster: &CephCluster,
    program: &str,
    arguments: &[&str],
) -> Result<T, CephError> {
    let answer = match program {
        "ceph" => cluster.ceph(arguments)?,
        _ => cluster.rbd(arguments)?,
    };
    parse(&answer)
        .map_err(|_| CephError::Answer { command: format!("{program} {}", arguments.join(" ")), answer })
}

/// The first JSON value: `ceph osd blocklist ls` writes a second array, of ranges, behind its entries.
fn parse<T: DeserializeOwned>(answer: &str) -> Result<T, serde_json::Error> {
    T::deserialize(&mut serde_json::Deserializer::from_str(answer))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_second_array_behind_the_answer_is_left_alone() {
        let entries: Vec<Blocklisted> =
            parse("\n[{\"addr\":\"127.0.0.1:0/7\",\"until\":\"2026\"}][]").unwrap();
        assert_eq!(entries[0].addr, "127.0.0.1:0/7");
    }

    #[test]
    fn a_report_names_everything_in_one_line() {
        assert_eq!(LeakReport::default().to_string(), "nothing is left");
        let report = LeakReport {
            images: vec!["rbd/a".to_owned()],
            blocklist: vec!["127.0.0.1:0/7".to_owned()],
            ..LeakReport::default()
        };
        assert_eq!(report.to_string(), "image rbd/a; blocklist entry 127.0.0.1:0/7");
    }
}
