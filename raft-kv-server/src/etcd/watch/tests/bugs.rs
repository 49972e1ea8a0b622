//! What went wrong with watches in etcd and in those that followed it, by the number under which
//! it was reported.

use super::*;
