//! The network between members is cut, in one direction or in both. Clients reach everybody: whoever is
//! cut off must not serve them what is old.

use super::Fault;
use crate::cluster::Cluster;

/// Which directions are cut, of `nodes` members, for a fault that meets `victim`.
pub(super) fn directions(fault: Fault, victim: usize, nodes: usize) -> Vec<(usize, usize)> {
    let others = (0..nodes).filter(|&other| other != victim);
    match fault {
        Fault::Isolate | Fault::IsolateLeader => {
            others.flat_map(|other| [(victim, other), (other, victim)]).collect()
        }
        Fault::Mute => others.map(|other| (victim, other)).collect(),
        Fault::Deaf => others.map(|other| (other, victim)).collect(),
        // Everybody but the victim, who sees both sides, is on one of two sides.
        Fault::Bridge => {
            let sides: Vec<usize> = others.collect();
            let (left, right) = sides.split_at(sides.len() / 2);
            left.iter().flat_map(|&one| right.iter().flat_map(move |&two| [(one, two), (two, one)])).collect()
        }
        _ => Vec::new(),
    }
}

pub(super) fn bring(fault: Fault, cluster: &mut Cluster, victims: &[usize]) -> Result<(), String> {
    let nodes = cluster.members().len();
    for &victim in victims {
        for (from, to) in directions(fault, victim, nodes) {
            cluster.network()?.cut(from, to)?;
        }
    }
    Ok(())
}

pub(super) fn heal(cluster: &mut Cluster) -> Result<(), String> {
    cluster.network()?.heal()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_cut_meets_the_directions_it_names() {
        assert_eq!(directions(Fault::Isolate, 0, 3), [(0, 1), (1, 0), (0, 2), (2, 0)]);
        assert_eq!(directions(Fault::Mute, 1, 3), [(1, 0), (1, 2)]);
        assert_eq!(directions(Fault::Deaf, 1, 3), [(0, 1), (2, 1)]);
        assert_eq!(directions(Fault::Bridge, 1, 3), [(0, 2), (2, 0)]);
        assert_eq!(directions(Fault::Bridge, 0, 5).len(), 8);
        assert!(directions(Fault::Kill, 0, 3).is_empty());
    }
}
