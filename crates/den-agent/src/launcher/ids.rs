//! Which ids computers get.
//!
//! ```text
//! on a host           2^28 + region·2^29 + slot·2^18     2^18 ids each, 7 launchers, 2048 slots
//! inside a computer   2^16 + slot·2^16                   2^16 ids each, 1 launcher, 3 slots
//! ```
//!
//! A computer has 2^18 ids for all that is in it: a Den inside gives what it has to a few computers of
//! the smallest size that a Debian takes (its `nobody` is 65534).

use std::sync::OnceLock;

use den_sys::creds;

/// The ids that the launchers of this user namespace share.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Ids {
    /// The first that is given out.
    first: u32,
    /// Of one computer.
    pub per_slot: u32,
    /// Computers and husks of one launcher at once.
    pub slots: u32,
    /// How many launchers share them.
    pub regions: u32,
}

impl Ids {
    /// On a host: enough for the subordinate ids of a user inside.
    const HOST: Self = Self { first: 1 << 28, per_slot: 1 << 18, slots: 2048, regions: 7 };

    /// Where ids 0 to `count` exist.
    fn of(count: u32) -> Self {
        let host = u64::from(Self::HOST.first)
            + u64::from(Self::HOST.per_slot) * u64::from(Self::HOST.slots) * u64::from(Self::HOST.regions);
        match u64::from(count) >= host {
            true => Self::HOST,
            false => Self { first: 1 << 16, per_slot: 1 << 16, slots: (count >> 16).saturating_sub(1), regions: 1 },
        }
    }

    /// The first id of a launcher's slot.
    pub(super) fn base(&self, region: u32, slot: u32) -> u32 {
        self.first + (region * self.slots + slot) * self.per_slot
    }
}

/// Those of this launcher and of what it clones, which asks in its memory and not again.
pub(super) fn ids() -> Ids {
    static IDS: OnceLock<Ids> = OnceLock::new();
    *IDS.get_or_init(|| Ids::of(creds::ids_here()))
}

#[cfg(test)]
mod tests {
    use super::Ids;

    #[test]
    fn a_den_in_a_den_has_room_for_three() {
        assert_eq!(Ids::of(u32::MAX), Ids::HOST);
        let nested = Ids::of(Ids::HOST.per_slot);
        assert_eq!((nested.slots, nested.regions), (3, 1));
        assert_eq!(nested.base(0, 2) + nested.per_slot, Ids::HOST.per_slot);
        assert_eq!(Ids::of(65_536).slots, 0);
    }
}
