//! SIGKILL: the process is gone at once. What it had written without syncing is still with the
//! operating system; `power` takes that too.

use crate::cluster::Cluster;

pub(super) fn bring(cluster: &mut Cluster, victims: &[usize]) -> Result<(), String> {
    victims.iter().try_for_each(|&index| cluster.kill(index))
}

pub(super) fn heal(cluster: &mut Cluster, victims: &[usize]) -> Result<(), String> {
    cluster.restart(victims)
}
