//! Checkers over cluster state.
