//! Rust SDK for Drover's gRPC API.
