//! Block backends, requests and their conformance suite.
