//! End-to-end tests of the `cdpipe` binary and the load they are judged by.
