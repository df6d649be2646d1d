//! The targets `docker` and `swarm`.
