//! The routers `nginx` and `haproxy`.
