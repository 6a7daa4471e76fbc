//! The control loop: events, reconcile, effects.
