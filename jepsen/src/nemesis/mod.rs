//! What breaks things: one file a fault. A fault is brought about, held for a while and healed;
//! both ends are written into the history.

mod damage;
mod kill;
mod partition;
mod pause;
mod power;

use std::time::Duration;

use rand::Rng;
use rand::seq::SliceRandom;
use rand_chacha::ChaCha8Rng;

use crate::cluster::Cluster;
use crate::history::{Event, Function, Kind, NEMESIS, Recorder};

/// A kind of fault.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug, clap::ValueEnum)]
pub enum Fault {
    /// SIGKILL of any member, then a restart.
    Kill,
    /// SIGSTOP of any member, then SIGCONT.
    Pause,
    /// SIGKILL of the leader, then a restart.
    KillLeader,
    /// SIGKILL of every member at once, then a restart of all.
    KillAll,
    /// The power of any member's machine is cut: what was not synced is gone.
    PowerCut,
    /// The power of all machines is cut at once.
    PowerCutAll,
    /// Any member and the others do not reach each other.
    Isolate,
    /// The leader and the others do not reach each other.
    IsolateLeader,
    /// Nothing that a member says arrives at the others.
    Mute,
    /// Nothing that the others say arrives at a member.
    Deaf,
    /// Two halves do not reach each other; one member between them reaches both.
    Bridge,
    /// One bit of one file of a member that is down is another one.
    BitFlip,
    /// A member's whole directory is as it was a while ago.
    OldImage,
}

impl Fault {
    /// All of them.
    pub const ALL: [Self; 13] = [
        Self::Kill,
        Self::Pause,
        Self::KillLeader,
        Self::KillAll,
        Self::PowerCut,
        Self::PowerCutAll,
        Self::Isolate,
        Self::IsolateLeader,
        Self::Mute,
        Self::Deaf,
        Self::Bridge,
        Self::BitFlip,
        Self::OldImage,
    ];

    /// Its name in a history.
    pub fn name(self) -> &'static str {
        match self {
            Self::Kill => "kill",
            Self::Pause => "pause",
            Self::KillLeader => "kill-leader",
            Self::KillAll => "kill-all",
            Self::PowerCut => "power-cut",
            Self::PowerCutAll => "power-cut-all",
            Self::Isolate => "isolate",
            Self::IsolateLeader => "isolate-leader",
            Self::Mute => "mute",
            Self::Deaf => "deaf",
            Self::Bridge => "bridge",
            Self::BitFlip => "bit-flip",
            Self::OldImage => "old-image",
        }
    }

    /// Whether a quorum is left while it lasts.
    pub fn leaves_quorum(self) -> bool {
        !matches!(self, Self::KillAll | Self::PowerCutAll)
    }

    /// Whether whom it meets may have to be taken in again under another id.
    pub fn costs_an_id(self) -> bool {
        matches!(self, Self::BitFlip | Self::OldImage)
    }

    /// Whether each member needs a disk of its own.
    pub fn needs_disks(self) -> bool {
        matches!(self, Self::PowerCut | Self::PowerCutAll)
    }

    /// Whether each member needs a network of its own.
    pub fn needs_network(self) -> bool {
        matches!(self, Self::Isolate | Self::IsolateLeader | Self::Mute | Self::Deaf | Self::Bridge)
    }

    /// Whom it meets, where `leader` is the leader's place if one is known.
    fn victims(self, nodes: usize, leader: Option<usize>, chance: &mut ChaCha8Rng) -> Vec<usize> {
        match self {
            Self::Kill
            | Self::Pause
            | Self::PowerCut
            | Self::Isolate
            | Self::Mute
            | Self::Deaf
            | Self::Bridge
            | Self::BitFlip
            | Self::OldImage => vec![chance.random_range(0..nodes)],
            Self::KillLeader | Self::IsolateLeader => {
                vec![leader.unwrap_or_else(|| chance.random_range(0..nodes))]
            }
            Self::KillAll | Self::PowerCutAll => (0..nodes).collect(),
        }
    }

    fn bring(self, cluster: &mut Cluster, victims: &[usize], chance: &mut ChaCha8Rng) -> Result<(), String> {
        match self {
            Self::BitFlip => damage::flip_bit(cluster, victims, chance),
            Self::OldImage => damage::take_image(cluster, victims),
            Self::Pause => pause::bring(cluster, victims),
            Self::Kill | Self::KillLeader | Self::KillAll => kill::bring(cluster, victims),
            Self::PowerCut | Self::PowerCutAll => power::bring(cluster, victims),
            Self::Isolate | Self::IsolateLeader | Self::Mute | Self::Deaf | Self::Bridge => {
                partition::bring(self, cluster, victims)
            }
        }
    }

    fn heal(self, cluster: &mut Cluster, victims: &[usize]) -> Result<(), String> {
        match self {
            Self::BitFlip => kill::heal(cluster, victims),
            Self::OldImage => damage::put_back(cluster, victims),
            Self::Pause => pause::heal(cluster, victims),
            Self::Kill | Self::KillLeader | Self::KillAll => kill::heal(cluster, victims),
            Self::PowerCut | Self::PowerCutAll => power::heal(cluster, victims),
            Self::Isolate | Self::IsolateLeader | Self::Mute | Self::Deaf | Self::Bridge => {
                partition::heal(cluster)
            }
        }
    }
}

/// The order in which faults come: each once a round, every round in another order.
pub struct Schedule {
    faults: Vec<Fault>,
    waiting: Vec<Fault>,
    chance: ChaCha8Rng,
}

impl Schedule {
    /// Of these faults; the same chance gives the same schedule.
    ///
    /// # Panics
    /// Without any fault.
    pub fn new(faults: &[Fault], chance: ChaCha8Rng) -> Self {
        assert!(!faults.is_empty(), "a schedule has a fault");
        Self { faults: faults.to_vec(), waiting: Vec::new(), chance }
    }

    /// The next fault and how long it lasts.
    pub fn next_fault(&mut self) -> (Fault, Duration) {
        if self.waiting.is_empty() {
            self.waiting.clone_from(&self.faults);
            self.waiting.shuffle(&mut self.chance);
        }
        let fault = self.waiting.pop().expect("a round has a fault");
        // Beyond the longest election timeout, so that a fault of the leader costs it its office. One
        // that is cut off has to notice first that nobody follows it any more.
        let lasts = Duration::from_millis(self.chance.random_range(1800..2600));
        (fault, if fault.needs_network() { 2 * lasts } else { lasts })
    }

    /// Whether every fault has come in the rounds so far.
    pub fn round_is_over(&self) -> bool {
        self.waiting.is_empty()
    }

    /// Brings a fault about; returns whom it meets.
    ///
    /// # Errors
    /// A member that is not there to be met.
    pub fn bring(
        &mut self,
        fault: Fault,
        cluster: &mut Cluster,
        leader: Option<usize>,
        recorder: &Recorder,
    ) -> Result<Vec<usize>, String> {
        let victims = fault.victims(cluster.members().len(), leader, &mut self.chance);
        record(Function::Break, fault, cluster, &victims, recorder);
        fault.bring(cluster, &victims, &mut self.chance)?;
        Ok(victims)
    }
}

/// Ends a fault; returns when those it met serve again.
///
/// # Errors
/// A member that does not come back.
pub fn heal(
    fault: Fault,
    cluster: &mut Cluster,
    victims: &[usize],
    recorder: &Recorder,
) -> Result<(), String> {
    fault.heal(cluster, victims)?;
    record(Function::Heal, fault, cluster, victims, recorder);
    Ok(())
}

fn record(f: Function, fault: Fault, cluster: &Cluster, victims: &[usize], recorder: &Recorder) {
    recorder.record(Event {
        process: NEMESIS,
        kind: Kind::Info,
        f,
        value: Some(fault.name().to_owned()),
        elements: victims.iter().map(|&index| cluster.members()[index].name.clone()).collect(),
        ..Event::default()
    });
}

#[cfg(test)]
mod tests {
    use super::*;
    use rand::SeedableRng;

    #[test]
    fn every_fault_comes_once_a_round_and_a_seed_gives_one_schedule() {
        let rounds = |seed| {
            let mut schedule = Schedule::new(&Fault::ALL, ChaCha8Rng::seed_from_u64(seed));
            let faults: Vec<_> = (0..2 * Fault::ALL.len()).map(|_| schedule.next_fault()).collect();
            assert!(schedule.round_is_over());
            faults
        };
        let faults = rounds(1);
        for round in faults.chunks(Fault::ALL.len()) {
            let mut kinds: Vec<Fault> = round.iter().map(|(fault, _)| *fault).collect();
            kinds.sort();
            assert_eq!(kinds, Fault::ALL);
        }
        assert_eq!(faults, rounds(1));
        assert_ne!(faults, rounds(2));
    }

    #[test]
    fn a_fault_meets_whom_it_names() {
        let mut chance = ChaCha8Rng::seed_from_u64(1);
        assert_eq!(Fault::KillLeader.victims(3, Some(2), &mut chance), [2]);
        assert_eq!(Fault::KillAll.victims(3, None, &mut chance), [0, 1, 2]);
        assert_eq!(Fault::Pause.victims(3, None, &mut chance).len(), 1);
    }
}
