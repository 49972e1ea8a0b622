//! SIGSTOP: the process stands still, like a machine that swaps or a virtual machine that is moved,
//! and believes on waking that no time has passed.

use crate::cluster::Cluster;

pub(super) fn bring(cluster: &mut Cluster, victims: &[usize]) -> Result<(), String> {
    victims.iter().try_for_each(|&index| cluster.pause(index))
}

pub(super) fn heal(cluster: &mut Cluster, victims: &[usize]) -> Result<(), String> {
    victims.iter().try_for_each(|&index| cluster.resume(index))
}
