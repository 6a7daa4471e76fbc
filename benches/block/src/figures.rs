//! What a contender reached, and the rows of the report.

use drover_bench_report::{Better, Row, Samples};
use drover_probe_record::BenchFigures;

use crate::{case::Case, cpu::CpuTime};

/// One run of one contender.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Figures {
    pub ops_per_s: f64,
    pub mib_per_s: f64,
    pub p50_us: f64,
    pub p99_us: f64,
    /// What a VMM and its guest had to do for it; `None` for who is no VMM.
    pub guest: Option<PerRequest>,
}

/// What one request costs.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) struct PerRequest {
    /// CPU time of the whole process.
    pub cpu_us: f64,
    /// CPU time without the vCPU's thread.
    pub without_vcpu_us: f64,
    /// How often the guest rang the doorbell.
    pub doorbells: f64,
    /// How often it was interrupted.
    pub interrupts: f64,
}

impl Figures {
    /// From what a probe counted while its VMM used so much CPU time.
    pub(crate) fn of_guest(counted: &BenchFigures, cpu: CpuTime) -> Self {
        let seconds = counted.us as f64 / 1e6;
        let per_op = |count: u64| count as f64 / (counted.ops.max(1)) as f64;
        Self {
            ops_per_s: counted.ops as f64 / seconds,
            mib_per_s: counted.bytes as f64 / f64::from(1 << 20) / seconds,
            p50_us: counted.p50_us as f64,
            p99_us: counted.p99_us as f64,
            guest: Some(PerRequest {
                cpu_us: per_op(cpu.all_ns) / 1e3,
                without_vcpu_us: per_op(cpu.all_ns.saturating_sub(cpu.vcpus_ns)) / 1e3,
                doorbells: per_op(counted.kicks),
                interrupts: per_op(counted.interrupts),
            }),
        }
    }
}

/// What all contenders have: how much, how soon.
pub(crate) fn rates(case: &Case, names: &[&str], reached: &[Vec<Figures>]) -> Vec<Row> {
    let row = |metric, unit, better, of: &dyn Fn(&Figures) -> Option<f64>| {
        Row::new(&case.name, metric, unit, better).medians(&samples(names, reached, of))
    };
    let rate = if case.is_large() {
        row("bandwidth", "MiB/s", Better::Higher, &|figures| Some(figures.mib_per_s))
    } else {
        row("requests", "1/s", Better::Higher, &|figures| Some(figures.ops_per_s))
    };
    vec![
        rate,
        row("latency p50", "us", Better::Lower, &|figures| Some(figures.p50_us)),
        row("latency p99", "us", Better::Lower, &|figures| Some(figures.p99_us)),
    ]
}

/// What the VMMs have: CPU time, and what passes between guest and host.
pub(crate) fn costs(case: &Case, names: &[&str], reached: &[Vec<Figures>]) -> Vec<Row> {
    let row = |metric, unit, of: &dyn Fn(&PerRequest) -> f64| {
        let samples = samples(names, reached, &|figures| figures.guest.as_ref().map(of));
        Row::new(&case.name, metric, unit, Better::Lower).medians(&samples)
    };
    vec![
        row("CPU per request", "us", &|request| request.cpu_us),
        row("CPU without vCPU", "us", &|request| request.without_vcpu_us),
        row("doorbells per request", "", &|request| request.doorbells),
        row("interrupts per request", "", &|request| request.interrupts),
    ]
}

/// One figure of everybody who has it.
fn samples(names: &[&str], reached: &[Vec<Figures>], of: &dyn Fn(&Figures) -> Option<f64>) -> Samples {
    let each = names.iter().zip(reached);
    let values = each.map(|(name, runs)| ((*name).to_owned(), runs.iter().filter_map(of).collect()));
    values.filter(|(_, values): &(String, Vec<f64>)| !values.is_empty()).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::case::on_rbd;

    #[test]
    fn rates_and_costs_follow_from_what_was_counted() {
        let counted = BenchFigures {
            ops: 1000,
            failed: 0,
            bytes: 1000 << 20,
            us: 2_000_000,
            p50_us: 10,
            p99_us: 20,
            p999_us: 30,
            max_us: 40,
            kicks: 5,
            interrupts: 6,
        };
        let cpu = CpuTime { all_ns: 90_000_000, vcpus_ns: 50_000_000 };
        let figures = Figures::of_guest(&counted, cpu);
        assert_eq!((figures.ops_per_s, figures.mib_per_s), (500.0, 500.0));
        let expect = PerRequest { cpu_us: 90.0, without_vcpu_us: 40.0, doorbells: 0.005, interrupts: 0.006 };
        assert_eq!(figures.guest, Some(expect));
    }

    #[test]
    fn who_is_no_vmm_has_a_rate_and_no_cost() {
        let run = Figures { ops_per_s: 1.0, mib_per_s: 1.0, p50_us: 1.0, p99_us: 1.0, guest: None };
        let reached = [vec![run]];
        assert_eq!(rates(&on_rbd()[0], &["fio"], &reached)[0].get("fio"), Some(1.0));
        assert_eq!(costs(&on_rbd()[0], &["fio"], &reached)[0].get("fio"), None);
    }
}
