use super::*;

fn board(used: &[[f64; 2]]) -> Board {
    Board::new(used.iter().map(|used| Gauge { capacity: [10.0, 100.0], used: *used }).collect())
}

#[test]
fn hosts_come_in_the_order_of_their_excess_and_of_their_load() {
    let board = board(&[[1.0, 10.0], [9.0, 10.0], [2.0, 60.0]]);
    assert_eq!(board.hottest().collect::<Vec<_>>(), [1, 2, 0]);
    assert_eq!(board.coldest().collect::<Vec<_>>(), [0, 2, 1]);
    assert_eq!(board.excess(2).0, 1);
}

#[test]
fn shifting_load_keeps_the_orders() {
    let mut board = board(&[[1.0, 10.0], [9.0, 10.0], [2.0, 60.0]]);
    board.shift(1, 0, [6.0, 5.0]);
    assert_eq!(board.hottest().collect::<Vec<_>>(), [2, 0, 1]);
    assert_eq!(board.coldest().collect::<Vec<_>>(), [1, 2, 0].map(|host| host));
    assert!(board.imbalance() < 0.3);
}

#[test]
fn evening_out_gains_and_overshooting_loses() {
    let board = board(&[[1.0, 10.0], [9.0, 10.0]]);
    let gain = |load| board.gain(1, 0, [load, 0.0], [1.0, 1.0], 1.0).0;
    assert!(gain(4.0) > gain(2.0));
    assert!(gain(4.0) > gain(6.0));
    assert!(gain(9.0) < 0.0);
    assert_eq!(gain(8.0).round(), 0.0);
}

#[test]
fn imbalance_is_the_worst_dimension() {
    assert_eq!(board(&[]).imbalance(), 0.0);
    assert_eq!(board(&[[5.0, 0.0], [5.0, 100.0]]).imbalance(), 0.5);
}
