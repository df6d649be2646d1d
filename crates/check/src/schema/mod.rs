//! The one table of the language.
