//! The shop: a small, real web service for the quickstart.
