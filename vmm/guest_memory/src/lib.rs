//! Guest RAM: layout, memfd regions, dirty tracking.
