//! A VM's balloon.

use std::collections::BTreeMap;

use drover_client::vm_api::BalloonStatus;
use serde::Serialize;

use super::bytes;
use crate::output::Row;

/// How it stands.
#[derive(Debug, Serialize)]
pub(crate) struct BalloonRow {
    driver: bool,
    target_bytes: u64,
    actual_bytes: u64,
    inflated_bytes: u64,
    reported_bytes: u64,
    statistics: BTreeMap<String, u64>,
}

impl From<BalloonStatus> for BalloonRow {
    fn from(status: BalloonStatus) -> Self {
        let BalloonStatus { driver, target_bytes, actual_bytes, inflated_bytes, reported_bytes, statistics } =
            status;
        let statistics = statistics.into_iter().collect();
        Self { driver, target_bytes, actual_bytes, inflated_bytes, reported_bytes, statistics }
    }
}

impl Row for BalloonRow {
    const TITLES: &'static [&'static str] = &["TARGET", "IN THE BALLOON", "GIVEN BACK", "REPORTED FREE"];

    fn cells(&self) -> Vec<String> {
        [self.target_bytes, self.actual_bytes, self.inflated_bytes, self.reported_bytes].map(bytes).to_vec()
    }

    fn details(&self) -> Vec<(&'static str, String)> {
        let statistics: Vec<String> =
            self.statistics.iter().map(|(name, value)| format!("{name} {value}")).collect();
        vec![
            ("driver", if self.driver { "the guest has one" } else { "the guest has none" }.to_owned()),
            ("target", bytes(self.target_bytes)),
            ("in the balloon", bytes(self.actual_bytes)),
            ("given back by inflating", bytes(self.inflated_bytes)),
            ("given back by reports of free pages", bytes(self.reported_bytes)),
            ("the guest says", statistics.join(", ")),
        ]
    }
}
