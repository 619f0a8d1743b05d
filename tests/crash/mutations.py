"""Put faults into a copy of the store's source and see a test notice each: `python -m tests.crash.mutations`.

A fault is a patch of one place of the real source, found by its text, which must be there exactly once. First every
named test must pass on the copy as it is. Prints a table; exit code 1 where a fault survives, 2 where a patch no longer
fits the source: then the fault is to be written again, in `FAULTS` below.
"""

from __future__ import annotations

import argparse
import os
import shutil
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
COPIED = (
    "buffers", "configs", "contracts", "environments", "evaluation", "inference", "learners", "loops", "serving",
    "telemetry", "tests", "pyproject.toml",
)  # fmt: skip
LIMIT_S = 600.0
LOG = "tests/unit/buffers/log"
POWER = "tests/crash/test_power_loss.py"
SHARDS = "tests/unit/buffers/test_sharding.py"


@dataclass(frozen=True)
class Fault:
    name: str
    file: str
    old: str  # exactly once in the file
    new: str
    test: str  # that must fail


FAULTS = (
    Fault(
        "the sync of a commit is skipped",
        "buffers/log/segments.py",
        "        os.fdatasync(self._fd)\n",
        "        pass\n",
        f"{POWER}::test_what_was_promised_survives",
    ),
    Fault(
        "an append is acknowledged before it is synced",
        "buffers/log/writer.py",
        """            self._sync()
            self._acknowledge([request for request in group if request.durable])
""",
        """            self._acknowledge([request for request in group if request.durable])
            self._sync()
""",
        f"{POWER}::test_what_was_promised_survives",
    ),
    Fault(
        "the folder of a new segment is not synced",
        "buffers/log/segments.py",
        "            sync_folder(folder)  # the log goes on",
        "            # the log goes on",
        f"{POWER}::test_what_was_promised_survives",
    ),
    Fault(
        "a new store's own name is not synced",
        "buffers/log/files.py",
        "            return  # another disk, or not ours to make\n        sync_folder(parent)\n",
        "            return\n",
        f"{POWER}::test_a_store_that_promised_something_has_not_vanished",
    ),
    Fault(
        "a small file is renamed before it is synced",
        "buffers/log/files.py",
        "        write_all(fd, data, offset=0)\n        os.fsync(fd)\n",
        "        write_all(fd, data, offset=0)\n",
        f"{POWER}::test_a_small_file_is_the_old_one_or_the_new_one",
    ),
    Fault(
        "the watermark runs ahead of the disk",
        "buffers/log/writer.py",
        """        if self._unsynced_since is not None and self._active is not None:
            began = time.monotonic()
""",
        """        self._watermark.write(durable_lsn=self._end_lsn, end_lsn=self._end_lsn)
        if self._unsynced_since is not None and self._active is not None:
            began = time.monotonic()
""",
        f"{LOG}/test_failures.py::test_a_failed_sync_stops_the_writer_for_good",
    ),
    Fault(
        "the watermark is not written",
        "buffers/log/writer.py",
        """        self._durable_lsn = self._end_lsn
        self._watermark.write(durable_lsn=self._durable_lsn, end_lsn=self._end_lsn)
""",
        "        self._durable_lsn = self._end_lsn\n",
        f"{LOG}/test_round_trip.py::test_an_os_ack_is_in_the_log_and_becomes_visible_by_itself",
    ),
    Fault(
        "the last frame of a sealed segment is dropped",
        "buffers/log/recovery.py",
        "        for item in walk(fd, start_lsn=start_lsn, begin=begin, end=end, uuid=uuid):\n",
        "        for item in walk(fd, start_lsn=start_lsn, begin=start_lsn, end=end - 8, uuid=uuid):\n",
        f"{LOG}/test_round_trip.py::test_what_is_appended_is_read_back_over_several_openings",
    ),
    Fault(
        "a checksum is ignored",
        "buffers/log/frames.py",
        "    if google_crc32c.extend(google_crc32c.value(blank), body) != header.crc:\n        return None\n",
        "",
        f"{LOG}/test_flips.py::test_each_bit_of_a_record_and_its_header",
    ),
    Fault(
        "the salt is not looked at",
        "buffers/log/segments.py",
        "        if header is None or (uuid is not None and header.salt != self._find_salt(uuid, header.epoch)):\n",
        "        if header is None:\n",
        f"{LOG}/test_recovery.py::test_bytes_of_another_store_and_its_watermark_do_not_count",
    ),
    Fault(
        "LSNs of a durable tail that is gone are used again",
        "buffers/log/recovery.py",
        "found.digest = max(point.lsn, durable), point.num_frames, point.digest\n",
        "found.digest = point.lsn, point.num_frames, point.digest\n",
        f"{LOG}/test_recovery.py::test_a_durable_tail_that_is_gone_is_rot_and_its_lsns_are_not_used_again",
    ),
    Fault(
        "a tear is cut in the middle of an append",
        "buffers/log/recovery.py",
        "        point = last if gap.start < durable else whole\n",
        "        point = last\n",
        f"{LOG}/test_recovery.py::test_an_append_that_was_half_written_is_absent",
    ),
    Fault(
        "a tear is cut after the last whole frame",
        "buffers/log/recovery.py",
        "        if gap.end > durable:\n            break\n",
        "",
        f"{LOG}/test_recovery.py::test_a_tear_is_cut_though_whole_frames_follow_and_is_kept",
    ),
    Fault(
        "rot is taken for a tear",
        "buffers/log/recovery.py",
        "            found.rot.append((gap.start, min(gap.end, durable)))\n",
        "            pass\n",
        f"{LOG}/test_flips.py::test_each_bit_of_a_record_and_its_header",
    ),
    Fault(
        "a tear is thrown away",
        "buffers/log/recovery.py",
        "        write_durably(torn, os.pread(fd, num_bytes, begin - start_lsn))\n",
        "",
        f"{LOG}/test_recovery.py::test_a_tear_is_cut_though_whole_frames_follow_and_is_kept",
    ),
    Fault(
        "what recovery keeps is not synced",
        "buffers/log/recovery.py",
        "        if must_sync:\n            os.fsync(fd)\n",
        "",
        f"{POWER}::test_what_recovery_kept_survives_the_next_power_loss",
    ),
    Fault(
        "the owner goes on after a failed sync",
        "buffers/log/writer.py",
        "            self._refuse(group, stopped)\n            raise stopped from error\n",
        "            self._refuse(group, stopped)\n",
        f"{LOG}/test_failures.py::test_a_failed_sync_stops_the_writer_for_good",
    ),
    Fault(
        "half of a refused write stays",
        "buffers/log/writer.py",
        "            self._seal()  # cuts what was half-written; the next append starts a segment, if there is room\n",
        "",
        f"{LOG}/test_failures.py::test_a_refused_write_leaves_nothing_and_serving_goes_on",
    ),
    Fault(
        "a full disk stops the owner for good",
        "buffers/log/writer.py",
        '            raise StoreFullError(f"{self._folder}: no room for {num_bytes} bytes: {error.strerror}")',
        "            raise OSError()",
        "tests/crash/test_disk_errors.py::test_no_room_at_any_operation_refuses_that_call_alone",
    ),
    Fault(
        "a segment whose name could not be synced counts as refused",
        "buffers/log/segments.py",
        """                path.hardlink_to(temporary)  # unlike rename, never takes a name that is in use
""",
        """                path.hardlink_to(temporary)
                sync_folder(folder)
""",
        "tests/crash/test_disk_errors.py::test_a_name_that_cannot_be_synced_stops_the_owner",
    ),
    Fault(
        "a zombie is trusted",
        "buffers/log/writer.py",
        "        if not self._still_owner():\n",
        "        if False:\n",
        f"{LOG}/test_failures.py::test_a_stale_epoch_is_fenced",
    ),
    Fault(
        "the epoch is not raised",
        "buffers/log/identity.py",
        "        epoch = _read_epoch(folder) + 1\n",
        "        epoch = max(1, _read_epoch(folder))\n",
        f"{LOG}/test_identity.py::test_two_claims_at_once_are_one_too_many",
    ),
    Fault(
        "a take-over kills whoever has the number",
        "buffers/log/identity.py",
        "        if read_start_time(holder.pid) != holder.start_time:\n",
        "        if False:\n",
        f"{LOG}/test_identity.py::test_take_over_kills_nobody_who_is_not_the_recorded_process",
    ),
    Fault(
        "the chain is not checked",
        "buffers/log/reader.py",
        "        if expected is not None and item.previous != expected:\n",
        "        if False:\n",
        f"{LOG}/test_recovery.py::test_the_chain_shows_a_frame_that_was_altered_with_a_right_checksum",
    ),
    Fault(
        "an index ahead of the log is trusted",
        "buffers/owner.py",
        "        if index.data_lsn > data.recovery.end_lsn or index.control_lsn > control.recovery.end_lsn:\n",
        "        if False:\n",
        "tests/unit/buffers/test_index.py::test_an_index_ahead_of_the_log_is_built_again",
    ),
    Fault(
        "a second copy is kept too",
        "buffers/intake.py",
        "            if self._find_copy(arrival) is None and not on_its_way:\n",
        "            if not on_its_way:\n",
        "tests/unit/buffers/test_owner.py::test_a_second_copy_is_told_the_first_ones_lsn",
    ),
    Fault(
        "a sequence number is accepted twice",
        "buffers/intake.py",
        "        return places[slot + 1]\n",
        "        return None\n",
        "tests/unit/buffers/test_owner.py::test_a_second_copy_is_told_the_first_ones_lsn",
    ),
    Fault(
        "a batch is cut twice, and trained twice, after a recovery",
        "buffers/decider.py",
        "                stored = state.fold.batch_lsns.get((request.branch, request.step))\n",
        "                stored = None\n",
        "tests/unit/buffers/test_owner.py::test_the_same_step_asked_twice_gets_the_stored_batch",
    ),
    Fault(
        "a disposition is forgotten",
        "buffers/fold.py",
        "        self.ended[disposition] += 1\n",
        "        self.ended[disposition] += disposition is not Disposition.STALE\n",
        "tests/unit/buffers/test_owner.py::test_stale_groups_are_dropped_in_the_batch_they_were_passed_over_for",
    ),
    Fault(
        "a late episode is trained on",
        "buffers/fold.py",
        "            group.closed_at = closed.data_lsn\n",
        "",
        "tests/unit/buffers/test_owner.py::test_an_answer_says_late_exactly_when_the_log_does",
    ),
    Fault(
        "a zombie learner may decide",
        "buffers/decider.py",
        "        if session not in newest.values():\n",
        "        if False:\n",
        "tests/unit/buffers/test_owner.py::test_a_zombie_learner_is_fenced",
    ),
    Fault(
        "a lost log is replaced by an empty one",
        "buffers/owner.py",
        '    is_new = not (folder.parent / BEGUN).exists() and not any(folder.glob("*.seg"))\n',
        '    is_new = not any(folder.glob("*.seg"))\n',
        "tests/unit/buffers/test_owner.py::test_a_lost_log_is_not_replaced_by_an_empty_one",
    ),
    Fault(
        "a snapshot's files are not compared",
        "buffers/snapshots.py",
        "        return _hash(path, described, member) != digest\n",
        "        return False\n",
        "tests/unit/buffers/test_snapshots.py::test_what_was_verified_once_is_compared_with_its_sha256",
    ),
    Fault(
        "a snapshot's segments are taken for whole",
        "buffers/snapshots.py",
        "        return any(isinstance(item, Gap) for item in",
        "        return False and any(isinstance(item, Gap) for item in",
        "tests/unit/buffers/test_snapshots.py::test_damage_is_found_and_named",
    ),
    Fault(
        "a group whose hold is on its way goes into a batch",
        "buffers/decider.py",
        "            if lease not in ending and lease not in judging and ",
        "            if lease not in ending and ",
        "tests/unit/buffers/test_held.py::test_a_hold_on_its_way_keeps_its_group_out_of_a_batch",
    ),
    Fault(
        "a shard skips a batch that it was told of",
        "buffers/following.py",
        "            copies = [self._localise(record) for _, record in records]\n",
        "            copies = [self._localise(record) for _, record in records if not isinstance(record, Batch)]\n",
        f"{SHARDS}::test_each_shard_says_of_its_groups_what_the_batch_says",
    ),
    Fault(
        "a shard lets a group be held that it has promised",
        "buffers/intake.py",
        "            if state.promised is None or lease in state.promised:\n",
        "            if state.promised is None:\n",
        f"{SHARDS}::test_a_promised_group_is_not_held",
    ),
    Fault(
        "a shard that was opened again thinks that it has promised nothing",
        "buffers/following.py",
        "            state.promised = None\n",
        "            pass\n",
        f"{SHARDS}::test_a_shard_that_was_opened_again_may_have_promised_anything",
    ),
    Fault(
        "a batch is decided before its rows are here",
        "buffers/sharding.py",
        "        if len(chosen) < request.num_groups or not self._read_ahead(chosen):\n",
        "        if len(chosen) < request.num_groups:\n",
        f"{SHARDS}::test_the_rows_of_a_batch_are_there_when_their_shard_dies_after_it_was_decided",
    ),
    Fault(
        "a lost shard keeps its part of each step",
        "buffers/sharding.py",
        "            shares = [Share(rank=rank, world=len(places)) for rank in range(len(places))]\n",
        "            shares = [Share(rank=place.number, world=len(self._places)) for place in places]\n",
        f"{SHARDS}::test_the_live_shards_take_over_the_share_of_a_lost_one",
    ),
    Fault(
        "a shard that was away takes any epoch",
        "buffers/sharding.py",
        "            self._first.check(producer, epoch)\n",
        "",
        f"{SHARDS}::test_an_old_epoch_is_fenced_by_a_shard_that_was_away",
    ),
    Fault(
        "a shard whose folder is gone is taken for a new one",
        "buffers/following.py",
        "            if not news.start and any(",
        "            if False and any(",
        f"{SHARDS}::test_a_shard_whose_folder_is_gone_is_not_taken_for_a_new_one",
    ),
    Fault(
        "a snapshot's log ends where its run's does",
        "buffers/log/recovery.py",
        "    bound_lsn = read_end(folder) if mark is None else None\n",
        "    bound_lsn = None\n",
        "tests/unit/buffers/test_snapshots.py::test_the_segment_that_is_written_is_shared_and_ends_where_it_ended",
    ),
    Fault(
        "bytes of a run are cut off a segment that a branch shares",
        "buffers/log/recovery.py",
        "        if found.st_nlink > 1 and find_data_end(fd, size) > size:\n",
        "        if False:\n",
        "tests/unit/buffers/test_snapshots.py::test_a_crash_after_a_snapshot_copies_no_segment",
    ),
    Fault(
        "a damaged footer is trusted",
        "buffers/footers.py",
        "        if data[: _CRC.size] != _CRC.pack(google_crc32c.value(bytes(body))):\n",
        "        if False:\n",
        "tests/unit/buffers/test_query.py::test_sealed_segments_are_read_from_their_footers",
    ),
    Fault(
        "a footer of another segment is trusted",
        "buffers/footers.py",
        "        return table if table.schema.metadata == self._describe(segment) else None\n",
        "        return table\n",
        "tests/unit/buffers/test_query.py::test_sealed_segments_are_read_from_their_footers",
    ),
    Fault(
        "a footer that lacks what could not be gathered is written",
        "buffers/footers.py",
        "            self._gathered, self._since = [], cast(int, last) + 1\n",
        "            self._gathered = []\n",
        "tests/unit/buffers/test_query.py::test_a_segment_that_no_footer_can_tell_of_has_none",
    ),
    Fault(
        "a query forgets rewards that came later",
        "buffers/query.py",
        "        rewards.setdefault(about, (lsn, reward))\n",
        "        pass\n",
        "tests/unit/buffers/test_query.py::test_everything_is_found_without_a_condition",
    ),
    Fault(
        "late episodes are drawn",
        "buffers/replaying.py",
        "        while len(self._late) and (late := np.isin(rows, self._late)).any():\n",
        "        while False and (late := np.isin(rows, self._late)).any():\n",
        "tests/unit/buffers/test_replaying.py::test_late_and_faulty_episodes_are_never_drawn",
    ),
    Fault(
        "what was erased keeps its priority",
        "buffers/replaying.py",
        "            gone = np.concatenate([np.arange(before, self._first), self._late])\n",
        "            gone = np.arange(before, self._first)\n",
        "tests/unit/buffers/test_replaying.py::test_what_was_erased_is_drawn_no_more_whatever_its_priority",
    ),
    Fault(
        "what was trimmed keeps its priority",
        "buffers/replaying.py",
        "            gone = np.concatenate([np.arange(before, self._first), self._late])\n",
        "            gone = self._late\n",
        "tests/unit/buffers/test_replaying.py::test_what_was_trimmed_is_drawn_no_more_whatever_its_priority",
    ),
    Fault(
        "a skipped batch is learned from again",
        "buffers/window.py",
        "            if lsn not in skipped:\n",
        "            if True:\n",
        "tests/unit/buffers/test_window.py::test_what_was_skipped_or_has_no_spread_or_left_the_window_is_not_drawn",
    ),
    Fault(
        "importance weights are left out",
        "buffers/window.py",
        "    return [(candidates[place], float(weight)) for place, weight in zip(places, weights, strict=True)]\n",
        "    return [(candidates[place], 1.0) for place, _ in zip(places, weights, strict=True)]\n",
        "tests/unit/buffers/test_window.py::test_weights_make_up_for_being_drawn_more_often",
    ),
    Fault(
        "a priority is not remembered",
        "buffers/fold.py",
        "            self.priorities[lease] = priority\n",
        "            pass\n",
        "tests/unit/buffers/test_window.py::test_a_priority_lies_with_the_experience",
    ),
    Fault(
        "a stored success that was trimmed is replayed",
        "buffers/successes.py",
        "    stored = [one for one in fold.successes.get(group.task.task_id) or () if one[0] >= kept_lsn]\n",
        "    stored = list(fold.successes.get(group.task.task_id) or ())\n",
        "tests/unit/buffers/test_retention.py::test_a_stored_success_that_was_trimmed_is_not_replayed",
    ),
    Fault(
        "what a batch on its way names is trimmed",
        "buffers/retention.py",
        "        batches = (*fold.open_batches.values(), *self._state.naming)\n",
        "        batches = (*fold.open_batches.values(),)\n",
        "tests/unit/buffers/test_retention.py::test_what_a_batch_on_its_way_replays_is_not_trimmed",
    ),
    Fault(
        "what a batch names that came during a trim is trimmed",
        "buffers/retention.py",
        " and data_lsn > self._find_named(since=end):\n",
        " and False:\n",
        "tests/unit/buffers/test_retention.py::test_a_step_that_comes_and_goes_while_a_trim_looks_is_seen",
    ),
    Fault(
        "a trim overlooks readers",
        "buffers/retention.py",
        "            bound = min(needed, self._records_end() if pinned is None else pinned)\n",
        "            bound = min(needed, self._records_end())\n",
        "tests/unit/buffers/test_retention.py::test_no_read_fails_while_100_readers_and_a_snapshot_are_open",
    ),
    Fault(
        "a dead reader pins for ever",
        "buffers/log/readers.py",
        """            fcntl.flock(lease, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
""",
        """            raise BlockingIOError
        except BlockingIOError:
""",
        "tests/unit/buffers/test_retention.py::test_a_dead_reader_does_not_pin_for_ever",
    ),
    Fault(
        "a trim that a kill left is ended under a reader",
        "buffers/retention.py",
        "        finish_trim(store, data_lsn if pinned is None else min(data_lsn, pinned))\n",
        "        finish_trim(store, data_lsn)\n",
        "tests/unit/buffers/test_retention.py::test_a_reader_outlives_the_next_owner_too",
    ),
    Fault(
        "what a start needs is trimmed",
        "buffers/retention.py",
        "one.step > min(steps)]\n",
        "one.step > max(steps)]\n",
        "tests/unit/buffers/test_retention.py::test_every_batch_after_the_oldest_kept_checkpoint_can_be_read",
    ),
    Fault(
        "the sums of what was trimmed are forgotten",
        "buffers/fold.py",
        "        self.num_handed, self.num_episodes, self.num_late = trim.handed, trim.episodes, trim.episodes_late\n",
        "        self.num_episodes, self.num_late = trim.episodes, trim.episodes_late\n",
        "tests/unit/buffers/test_retention.py::test_the_oldest_segments_go_and_the_sums_stay",
    ),
    Fault(
        "a view goes on over a trim as if nothing were gone",
        "buffers/view.py",
        " or fold.data_end < self._first_lsn():\n",
        ":\n",
        "tests/unit/buffers/test_view.py::test_a_view_without_an_index_goes_on_over_a_trim",
    ),
    Fault(
        "an episode's values are not looked at",
        "buffers/checks.py",
        "    if tuple(map(type, values)) not in _PLAIN or max(values[: len(_WHOLE)]) > MAX_INT:\n",
        "    if False:\n",
        "tests/unit/buffers/test_quarantine.py::test_numbers_of_another_library_are_taken_as_what_will_be_read_back",
    ),
    Fault(
        "a version of more than 64 bits is kept",
        "buffers/checks.py",
        "        if span.version > MAX_INT or span.start > MAX_INT:\n",
        "        if False:\n",
        "tests/unit/buffers/test_quarantine.py::test_a_bad_episode_is_kept_apart_and_its_group_is_never_sampled",
    ),
    Fault(
        "a log-probability that is not finite is trained on",
        "buffers/checks.py",
        "        if flaw is None and not _is_finite(step.log_probs):\n",
        "        if False:\n",
        "tests/unit/buffers/test_quarantine.py::test_a_bad_episode_is_kept_apart_and_its_group_is_never_sampled",
    ),
    Fault(
        "what is folded is not what will be read back",
        "buffers/pipeline.py",
        "[decode(record.KIND, payload) for record, payload in",
        "[record for record, _ in",
        "tests/unit/buffers/test_quarantine.py::test_a_value_that_is_none_is_refused_in_one_sentence",
    ),
    Fault(
        "a later cut of the index is written after one that failed",
        "buffers/indexing.py",
        "            self._failed = True\n",
        "",
        "tests/unit/buffers/test_index.py::test_what_no_index_can_hold_ends_it_aloud_and_not_the_store",
    ),
    Fault(
        "a batch names a reward that is not durable",
        "buffers/decider.py",
        "        return list(takewhile(lambda lease: fold.groups[lease].reward_lsn < mark, ready))\n",
        "        return ready\n",
        "tests/unit/buffers/test_owner.py::test_a_batch_names_nothing_that_a_power_loss_may_take",
    ),
    Fault(
        "another record under a used number is told it is a copy",
        "buffers/intake.py",
        "        if copy is None and (known := self._retries.find(episode)) is not None:\n",
        """        if copy is None and (known := self._retries.find(episode)) is not None:
            return known
""",
        "tests/unit/buffers/test_owner.py::test_a_second_copy_is_told_the_first_ones_lsn",
    ),
    Fault(
        "erased contents stay",
        "buffers/erasure.py",
        "    return replace(record, steps=(), reward_parts={})\n",
        "    return record\n",
        "tests/unit/buffers/test_tending.py::test_erased_contents_are_gone_and_counts_stay",
    ),
)


def find_misfits(root: Path = ROOT) -> list[str]:
    """Faults whose place is not in the source exactly once, in words."""
    counts = {fault.name: (root / fault.file).read_text().count(fault.old) for fault in FAULTS}
    return [
        f"{fault.name}: its text is {counts[fault.name]} times in {fault.file}: {fault.old.strip().splitlines()[0]}"
        for fault in FAULTS
        if counts[fault.name] != 1
    ]


def copy_source(target: Path) -> None:
    for name in COPIED:
        if (ROOT / name).is_dir():
            shutil.copytree(ROOT / name, target / name, ignore=shutil.ignore_patterns("__pycache__"))
        else:
            shutil.copy(ROOT / name, target / name)


def run_test(test: str, copy: Path) -> tuple[bool, str]:
    """Whether it passes there, and the end of what pytest said. A test that hangs fails."""
    command = [sys.executable, "-m", "pytest", "-q", "-x", "-p", "no:cacheprovider", "-m", "not slow", *test.split(" ")]
    environment = {**os.environ, "PYTHONPATH": str(copy), "PYTHONDONTWRITEBYTECODE": "1", "OMP_NUM_THREADS": "1"}
    try:
        done = subprocess.run(
            command, cwd=copy, env=environment, capture_output=True, text=True, timeout=LIMIT_S, check=False
        )
    except subprocess.TimeoutExpired:
        return False, f"nothing within {LIMIT_S:.0f} s"
    if done.returncode not in (0, 1):  # 1: a test failed; anything else is no verdict
        raise SystemExit(f"pytest could not run {test}:\n{done.stdout}{done.stderr}")
    return done.returncode == 0, done.stdout.strip().splitlines()[-1]


def try_fault(fault: Fault, copy: Path) -> bool:
    """Whether its test noticed it."""
    file = copy / fault.file
    source = file.read_text()
    try:
        file.write_text(source.replace(fault.old, fault.new))
        passed, _ = run_test(fault.test, copy)
    finally:
        file.write_text(source)
    return not passed


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", default="", help="faults whose name contains this")
    options = parser.parse_args()
    if misfits := find_misfits():
        print("\n".join(misfits), file=sys.stderr)
        return 2
    faults = [fault for fault in FAULTS if options.only in fault.name]
    with tempfile.TemporaryDirectory(prefix="ratchet-mutations-") as folder:
        copy = Path(folder)
        copy_source(copy)
        passed, said = run_test(" ".join(dict.fromkeys(fault.test for fault in faults)), copy)
        if not passed:
            raise SystemExit(f"without any fault, the tests do not pass: {said}")
        survivors = 0
        for fault in faults:
            began_s = time.monotonic()
            caught = try_fault(fault, copy)
            survivors += not caught
            verdict, test = "caught" if caught else "SURVIVED", fault.test.rpartition("::")[2]
            print(f"{verdict:9} {time.monotonic() - began_s:5.0f} s  {fault.name:58}  {test}", flush=True)
    print(f"{len(faults)} faults, {len(faults) - survivors} caught, {survivors} survived")
    return int(survivors > 0)


if __name__ == "__main__":
    sys.exit(main())
