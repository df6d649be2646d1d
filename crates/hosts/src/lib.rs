//! The target `hosts`.
