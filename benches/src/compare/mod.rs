//! Two servers of the etcd v3 API under the same load: what `bin/compare` is made of.

pub mod clusters;
pub mod report;
pub mod work;
