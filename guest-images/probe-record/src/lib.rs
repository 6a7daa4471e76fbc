//! What the probe guest is told, writes and reports.
