//! Linear programs whose origin is a solution: maximise the sum of `x >= 0` where `a * x <= b` and `b >= 0`.
//!
//! Dantzig's simplex method on a dense tableau, with Bland's rule against cycling (Chvátal: "Linear Programming", 1983,
//! chapters 2 and 3). A general solver is a hundred times as much code as these sixty lines, and most of a minute to build.

/// Coefficients this small are rounding errors: the sizes that go in are scaled to about one.
const EPSILON: f64 = 1e-9;
/// Steps for each row and column before giving up. Programs of this kind take about twice as many steps as rows.
const STEPS_EACH: usize = 50;

/// One constraint: the coefficients that are not zero, by variable, and what their sum may be.
#[derive(Clone, Debug)]
pub(super) struct Constraint {
    pub(super) terms: Vec<(usize, f64)>,
    pub(super) at_most: f64,
}

/// The largest sum, and a price for each constraint that proves it: at these prices no variable is worth more than it costs,
/// and everything there is costs as much as the sum (duality). `None`: given up.
pub(super) fn maximise_sum(variables: usize, constraints: &[Constraint]) -> Option<(f64, Vec<f64>)> {
    let (rows, columns) = (constraints.len(), variables + constraints.len());
    let mut tableau = vec![vec![0.0; columns + 1]; rows + 1];
    for (row, constraint) in constraints.iter().enumerate() {
        for (variable, coefficient) in &constraint.terms {
            tableau[row][*variable] += coefficient;
        }
        tableau[row][variables + row] = 1.0;
        tableau[row][columns] = constraint.at_most;
    }
    tableau[rows][..variables].fill(-1.0);
    let mut basis: Vec<usize> = (variables..columns).collect();
    for _ in 0..STEPS_EACH * (rows + columns) {
        let Some(enters) = (0..columns).find(|column| tableau[rows][*column] < -EPSILON) else {
            return Some((tableau[rows][columns], tableau[rows][variables..columns].to_vec()));
        };
        let leaves = (0..rows).filter(|row| tableau[*row][enters] > EPSILON).min_by(|a, b| {
            let ratio = |row: usize| tableau[row][columns] / tableau[row][enters];
            ratio(*a).total_cmp(&ratio(*b)).then(basis[*a].cmp(&basis[*b]))
        })?;
        basis[leaves] = enters;
        pivot(&mut tableau, leaves, enters);
    }
    None
}

fn pivot(tableau: &mut [Vec<f64>], row: usize, column: usize) {
    let scale = tableau[row][column];
    tableau[row].iter_mut().for_each(|value| *value /= scale);
    let pivot = std::mem::take(&mut tableau[row]);
    for other in tableau.iter_mut().filter(|other| !other.is_empty()) {
        let factor = other[column];
        if factor != 0.0 {
            other.iter_mut().zip(&pivot).for_each(|(value, p)| *value -= factor * p);
        }
    }
    tableau[row] = pivot;
}

#[cfg(test)]
mod tests {
    use super::*;
    use drover_placement_trace::generate::{Random, Seed};

    fn constraint(terms: &[(usize, f64)], at_most: f64) -> Constraint {
        Constraint { terms: terms.to_vec(), at_most }
    }

    fn check(variables: usize, constraints: &[Constraint], expect: f64) {
        let (sum, prices) = maximise_sum(variables, constraints).unwrap();
        assert!((sum - expect).abs() < 1e-6, "{constraints:?}: {sum}, expected {expect}");
        is_proven(variables, constraints, sum, &prices);
    }

    /// Weak duality: at valid prices the cost of everything is at least any solution's sum.
    fn is_proven(variables: usize, constraints: &[Constraint], sum: f64, prices: &[f64]) {
        let mut cost_of = vec![0.0; variables];
        let mut cost = 0.0;
        for (constraint, price) in constraints.iter().zip(prices) {
            assert!(*price >= -1e-6, "{prices:?}");
            cost += constraint.at_most * price;
            constraint
                .terms
                .iter()
                .for_each(|(variable, coefficient)| cost_of[*variable] += coefficient * price);
        }
        assert!(cost_of.iter().all(|cost| *cost >= 1.0 - 1e-6), "{cost_of:?}");
        assert!((cost - sum).abs() < 1e-6 * (1.0 + sum), "{cost} {sum}");
    }

    #[test]
    fn small_programs_are_solved() {
        check(1, &[constraint(&[(0, 2.0)], 3.0)], 1.5);
        check(2, &[constraint(&[(0, 1.0), (1, 1.0)], 4.0), constraint(&[(0, 1.0)], 1.0)], 4.0);
        check(2, &[constraint(&[(0, 1.0), (1, 3.0)], 6.0), constraint(&[(0, 2.0), (1, 1.0)], 4.0)], 2.8);
        check(2, &[constraint(&[(0, 1.0)], 0.0), constraint(&[(1, 1.0)], 0.0)], 0.0);
    }

    #[test]
    fn an_unbounded_program_is_given_up() {
        assert!(maximise_sum(2, &[constraint(&[(0, 1.0)], 1.0)]).is_none());
    }

    #[test]
    fn each_answer_comes_with_its_proof() {
        let mut random = Random::new(Seed(11));
        for _ in 0..300 {
            let variables = 1 + random.below(12);
            let mut constraints: Vec<Constraint> =
                (0..variables).map(|variable| constraint(&[(variable, 1.0)], random.unit() * 9.0)).collect();
            for _ in 0..1 + random.below(6) {
                let terms: Vec<(usize, f64)> = (0..variables).map(|v| (v, random.unit())).collect();
                constraints.push(constraint(&terms, random.unit() * 9.0));
            }
            let (sum, prices) = maximise_sum(variables, &constraints).unwrap();
            is_proven(variables, &constraints, sum, &prices);
        }
    }
}
