//! The VM's numbers in Prometheus' text exposition format, version 0.0.4.

use std::fmt::Write as _;

use drover_machine::{
    BlkMetricsSnapshot,
    devices::{NetMetricsSnapshot, limits::Counters},
};
use drover_wire::vm::v1 as wire;

use crate::{
    hosted::{DiskReading, NicReading},
    jail,
};

/// Renders what is known at this moment.
pub(crate) fn render(
    info: &wire::VmInfo,
    console_bytes: u64,
    (disks, nics): (&[DiskReading], &[NicReading]),
) -> String {
    let mut page = Page { text: String::new(), vm: label(&info.vm_id) };
    page.gauge_with(
        "drover_vm_info",
        "The VM of this process; always 1.",
        &format!("name=\"{}\",pid=\"{}\"", label(&info.name), info.pid),
        1.0,
    );
    page.head("drover_vm_state", "gauge", "1 for the state that the VM is in, 0 for the others.");
    for state in STATES {
        let name = state.as_str_name().trim_start_matches("VM_STATE_").to_ascii_lowercase();
        page.sample(
            "drover_vm_state",
            &format!("state=\"{name}\""),
            f64::from(u8::from(info.state() == state)),
        );
    }
    page.head(
        "drover_vm_jail",
        "gauge",
        "1 for each layer of the jail that this process is in, 0 for one that it is not.",
    );
    for (layer, is_in_force) in jail::layers() {
        page.sample("drover_vm_jail", &format!("layer=\"{layer}\""), f64::from(u8::from(is_in_force)));
    }
    page.gauge(
        "drover_vm_owner_epoch",
        "The epoch under which the VM is held here.",
        info.owner_epoch as f64,
    );
    page.counter(
        "drover_vm_console_bytes_total",
        "Bytes that the guest wrote to its console.",
        console_bytes,
    );
    for (name, help, value) in DISK_COUNTERS {
        page.head(name, "counter", help);
        for disk in disks {
            page.sample(name, &format!("volume=\"{}\"", disk.volume), value(&disk.counters) as f64);
        }
    }
    for (name, help, value) in NIC_COUNTERS {
        page.head(name, "counter", help);
        for nic in nics {
            page.sample(name, &format!("mac=\"{}\"", nic.mac), value(&nic.counters) as f64);
        }
    }
    for (name, help, value) in THROTTLE_COUNTERS {
        let (disk_name, nic_name) = (format!("drover_vm_disk_{name}"), format!("drover_vm_nic_{name}"));
        page.head(&disk_name, "counter", help);
        for disk in disks {
            page.sample(&disk_name, &format!("volume=\"{}\"", disk.volume), value(&disk.throttled));
        }
        page.head(&nic_name, "counter", help);
        for nic in nics {
            page.sample(&nic_name, &format!("mac=\"{}\"", nic.mac), value(&nic.throttled));
        }
    }
    if let Some(boot) = info.boot.filter(|boot| boot.start_to_first_byte_us > 0) {
        page.gauge(
            "drover_vm_start_to_first_byte_seconds",
            "From the start of the vCPUs to the guest's first console byte.",
            seconds(boot.start_to_first_byte_us),
        );
    }
    if let Some(migration) = &info.migration {
        page.gauge(
            "drover_vm_migration_phase",
            "Phase of the last migration, as in vm.proto.",
            migration.phase.into(),
        );
        page.gauge("drover_vm_migration_rounds", "Rounds of the last migration.", migration.rounds.into());
        page.gauge(
            "drover_vm_migration_sent_bytes",
            "Sent by the last migration.",
            migration.bytes_sent as f64,
        );
        page.gauge(
            "drover_vm_migration_remaining_bytes",
            "Dirty after the last round of the last migration.",
            migration.bytes_remaining as f64,
        );
        page.gauge(
            "drover_vm_migration_downtime_seconds",
            "From the pause of the vCPUs to the target's word that they run; 0 until then.",
            seconds(migration.downtime_us),
        );
    }
    page.text
}

type DiskCounter = (&'static str, &'static str, fn(&BlkMetricsSnapshot) -> u64);

const DISK_COUNTERS: [DiskCounter; 6] = [
    ("drover_vm_disk_reads_total", "Reads that succeeded.", |disk| disk.reads),
    ("drover_vm_disk_writes_total", "Writes that succeeded.", |disk| disk.writes),
    ("drover_vm_disk_flushes_total", "Flushes that succeeded.", |disk| disk.flushes),
    ("drover_vm_disk_read_bytes_total", "Bytes that successful reads moved.", |disk| disk.bytes_read),
    ("drover_vm_disk_written_bytes_total", "Bytes that successful writes moved.", |disk| disk.bytes_written),
    ("drover_vm_disk_errors_total", "Requests answered with an error.", |disk| disk.errors),
];

type NicCounter = (&'static str, &'static str, fn(&NetMetricsSnapshot) -> u64);

const NIC_COUNTERS: [NicCounter; 7] = [
    ("drover_vm_nic_received_packets_total", "Packets that the guest was given.", |nic| nic.packets_received),
    ("drover_vm_nic_received_bytes_total", "Their bytes.", |nic| nic.bytes_received),
    ("drover_vm_nic_sent_packets_total", "Packets that the host's network took.", |nic| nic.packets_sent),
    ("drover_vm_nic_sent_bytes_total", "Their bytes.", |nic| nic.bytes_sent),
    ("drover_vm_nic_filtered_packets_total", "Packets that the guest's filter kept out.", |nic| nic.filtered),
    ("drover_vm_nic_too_long_packets_total", "Packets beyond the guest's buffers, lost.", |nic| nic.too_long),
    ("drover_vm_nic_refused_packets_total", "The guest's packets that were not taken, lost.", |nic| {
        nic.refused
    }),
];

type ThrottleCounter = (&'static str, &'static str, fn(&Counters) -> f64);

const THROTTLE_COUNTERS: [ThrottleCounter; 3] = [
    ("throttled_requests_total", "Requests or packets that a limit held back.", |held| held.requests as f64),
    ("throttled_bytes_total", "Their bytes.", |held| held.bytes as f64),
    ("throttled_seconds_total", "How long they stood at the head of their queue.", |held| {
        held.time.as_secs_f64()
    }),
];

const STATES: [wire::VmState; 9] = [
    wire::VmState::Empty,
    wire::VmState::Created,
    wire::VmState::Running,
    wire::VmState::Paused,
    wire::VmState::Incoming,
    wire::VmState::MigratingOut,
    wire::VmState::Committed,
    wire::VmState::Migrated,
    wire::VmState::Stopped,
];

fn seconds(us: u64) -> f64 {
    us as f64 / 1e6
}

/// A label's value: backslash, quote and line feed are escaped.
fn label(value: &str) -> String {
    value.replace('\\', r"\\").replace('"', "\\\"").replace('\n', r"\n")
}

struct Page {
    text: String,
    vm: String,
}

impl Page {
    fn head(&mut self, name: &str, kind: &str, help: &str) {
        let _ = writeln!(self.text, "# HELP {name} {help}\n# TYPE {name} {kind}");
    }

    fn sample(&mut self, name: &str, labels: &str, value: f64) {
        let separator = if labels.is_empty() { "" } else { "," };
        let _ = writeln!(self.text, "{name}{{vm=\"{}\"{separator}{labels}}} {value}", self.vm);
    }

    fn gauge_with(&mut self, name: &str, help: &str, labels: &str, value: f64) {
        self.head(name, "gauge", help);
        self.sample(name, labels, value);
    }

    fn gauge(&mut self, name: &str, help: &str, value: f64) {
        self.gauge_with(name, help, "", value);
    }

    fn counter(&mut self, name: &str, help: &str, value: u64) {
        self.head(name, "counter", help);
        self.sample(name, "", value as f64);
    }
}

#[cfg(test)]
mod tests {
    use drover_ids::VolumeId;
    use drover_machine::devices::MacAddress;

    use super::*;

    #[test]
    fn the_page_names_the_vm_and_its_one_state() {
        let info = wire::VmInfo {
            vm_id: "7".to_owned(),
            name: "a \"quoted\" name".to_owned(),
            state: wire::VmState::Running.into(),
            ..wire::VmInfo::default()
        };
        let disk = BlkMetricsSnapshot { writes: 3, ..BlkMetricsSnapshot::default() };
        let volume = VolumeId::from_u128(9);
        let throttled = Counters { requests: 4, ..Counters::default() };
        let disk = DiskReading { volume, counters: disk, throttled };
        let nic = NicReading {
            mac: MacAddress([2, 0, 0, 0, 0, 1]),
            counters: NetMetricsSnapshot { packets_sent: 5, ..NetMetricsSnapshot::default() },
            throttled,
        };
        let text = render(&info, 12, (&[disk], &[nic]));
        assert!(
            text.contains("drover_vm_nic_sent_packets_total{vm=\"7\",mac=\"02:00:00:00:00:01\"} 5\n"),
            "{text}"
        );
        assert!(
            text.contains("drover_vm_nic_throttled_requests_total{vm=\"7\",mac=\"02:00:00:00:00:01\"} 4\n"),
            "{text}"
        );
        assert!(
            text.contains("drover_vm_info{vm=\"7\",name=\"a \\\"quoted\\\" name\",pid=\"0\"} 1\n"),
            "{text}"
        );
        assert!(text.contains("drover_vm_state{vm=\"7\",state=\"running\"} 1\n"), "{text}");
        assert_eq!(text.matches("drover_vm_state{").count(), STATES.len());
        assert!(text.contains("drover_vm_console_bytes_total{vm=\"7\"} 12\n"), "{text}");
        let writes =
            "drover_vm_disk_writes_total{vm=\"7\",volume=\"00000000-0000-0000-0000-000000000009\"} 3\n";
        assert!(text.contains(writes), "{text}");
        for line in text.lines() {
            assert!(line.starts_with('#') || line.starts_with("drover_vm_"), "{line}");
        }
    }
}
