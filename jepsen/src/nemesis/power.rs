//! The power of a member's machine is cut: its process is gone, and so is everything that its disk was
//! not told to keep.

use crate::cluster::Cluster;

pub(super) fn bring(cluster: &mut Cluster, victims: &[usize]) -> Result<(), String> {
    cluster.cut_power(victims)
}

pub(super) fn heal(cluster: &mut Cluster, victims: &[usize]) -> Result<(), String> {
    cluster.give_power(victims)?;
    cluster.restart(victims)
}
