use super::*;

const GIB: u64 = 1 << 30;

fn vm(number: u128) -> VmId {
    VmId::from_u128(number)
}

fn sample(number: u128, memory_gib: u64, sent_gib: u64, seconds: u64) -> MigrationSample {
    MigrationSample {
        vm: vm(number),
        memory: Bytes::new(memory_gib * GIB),
        sent: Bytes::new(sent_gib * GIB),
        total: Duration::from_secs(seconds),
        downtime: Duration::from_millis(20),
    }
}

#[test]
fn an_idle_guest_is_sent_once() {
    let mut model = CostModel::new();
    model.observe(sample(1, 4, 4, 4));
    let cost = model.expect(vm(9), Bytes::new(8 * GIB), None);
    assert_eq!(cost.sent, Bytes::new(8 * GIB));
    assert_eq!(cost.time, FIXED_TIME + Duration::from_secs(8));
    assert_eq!(cost.downtime, Duration::from_millis(20));
}

#[test]
fn a_guest_that_writes_is_sent_again_and_again() {
    let mut model = CostModel::new();
    model.observe(sample(1, 4, 4, 4));
    let half = BytesPerSec::new(GIB / 2);
    let cost = model.expect(vm(9), Bytes::new(8 * GIB), Some(half));
    // 8 + 4 + 2 + 1 + 1/2 + 1/4 + 1/8 and a rest of 1/16, which fits the pause.
    assert_eq!(cost.sent, Bytes::new(16 * GIB - GIB / 16));
    assert!(cost.downtime > Duration::from_millis(60), "{cost:?}");
}

#[test]
fn a_guest_faster_than_the_network_ends_after_bounded_rounds() {
    let model = CostModel::new();
    let cost = model.expect(vm(9), Bytes::new(GIB), Some(BytesPerSec::new(u64::MAX)));
    assert_eq!(cost.sent, Bytes::new((u64::from(ROUNDS_MAX) + 1) * GIB));
    assert!(cost.downtime > Duration::from_secs(1), "{cost:?}");
}

#[test]
fn what_a_vm_showed_itself_counts_more_than_what_is_usual() {
    let mut model = CostModel::new();
    model.observe(sample(1, 4, 8, 8));
    model.observe(sample(2, 4, 4, 4));
    model.observe(sample(3, 4, 4, 4));
    let memory = Bytes::new(4 * GIB);
    assert!(model.expect(vm(1), memory, None).sent > model.expect(vm(9), memory, None).sent);
    model.forget(vm(1));
    assert_eq!(model.expect(vm(1), memory, None), model.expect(vm(9), memory, None));
}

#[test]
fn bandwidth_is_the_median_of_the_recent() {
    let mut model = CostModel::new();
    assert_eq!(model.bandwidth(), BytesPerSec::new(BANDWIDTH_AT_FIRST));
    for number in 0..SAMPLES_KEPT {
        model.observe(sample(number as u128, 1, 1, 10));
    }
    for number in 0..=SAMPLES_KEPT / 2 {
        model.observe(sample(number as u128, 1, 1, 1));
    }
    assert_eq!(model.bandwidth(), BytesPerSec::new(GIB));
    assert_eq!(model.recent.len(), SAMPLES_KEPT);
}

#[test]
fn a_sample_of_nothing_is_left_out() {
    let mut model = CostModel::new();
    model.observe(sample(1, 1, 0, 10));
    model.observe(sample(1, 1, 1, 0));
    assert_eq!(model, CostModel::new());
}
