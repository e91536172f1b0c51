"""The faults and bad inputs a trusted harness survives, and the tests (file::test, below
``tests/``) that hold each.
"""

from __future__ import annotations

CASES: dict[int, tuple[str, tuple[str, ...]]] = {
    1: (
        "answer generation fails for some items",
        (
            "test_faults::test_memory_runs_out_for_one_item_it_is_never_judged_and_the_next_run_makes_it_good",
            "test_answer::test_a_failed_first_turn_fails_the_second_and_is_never_text",
            "test_mt_bench::test_failed_answers_are_never_judged",
            "test_alpaca_eval::test_failed_and_missing_answers_are_never_judged_and_never_numbers",
            "test_execute::test_judging_incomplete_answers_stays_incomplete",
        ),
    ),
    2: (
        "out of memory in generation",
        (
            "test_faults::test_memory_runs_out_for_one_item_it_is_never_judged_and_the_next_run_makes_it_good",
            "test_generate::test_out_of_memory_halves_the_batch_and_ends_as_error",
            "test_academic::test_out_of_memory_shrinks_the_batches",
        ),
    ),
    3: (
        "judge 429, time-out, 5xx",
        (
            "test_judge_client::test_429_5xx_time_outs_and_broken_replies_are_retried_while_others_go_on",
            "test_judge_client::test_retry_after_is_honoured",
            "test_judge_client::test_waiting_times_are_bounded_jittered_and_read_from_both_headers",
            "test_judge_client::test_the_deadline_ends_a_run_against_a_dead_judge",
            "test_judge_chaos::test_a_thousand_judgments_survive_faults_and_twenty_kills",
        ),
    ),
    4: (
        "judge 401 or quota",
        (
            "test_faults::test_a_refused_key_or_quota_fails_the_stage_at_once_and_the_next_run_goes_on",
            "test_judge_client::test_a_refused_key_or_exhausted_quota_stops_at_once_and_writes_no_verdict",
        ),
    ),
    5: (
        "unparsable verdict",
        (
            "test_faults::test_every_kind_of_missing_verdict_is_counted_in_the_tables",
            "test_mt_bench::test_unreadable_verdicts_are_asked_again_within_bounds_then_unparsed",
            "test_alpaca_eval::test_unreadable_replies_are_asked_again_then_unparsed",
        ),
    ),
    6: (
        "several verdicts or bracketed indices",
        (
            "test_mt_bench::test_the_last_final_verdict_counts",
            "test_mt_bench::test_fastchat_reads_the_first_bracket_and_crashes_on_full_width_digits",
            "test_mt_bench::test_disagreement_with_fastchats_first_match_is_counted",
            "test_published::test_mt_bench_scores_prompts_and_ratings_are_exact",
        ),
    ),
    7: (
        "rating 100, −1, NaN, full-width digits",
        ("test_mt_bench::test_bad_ratings_are_rejected_without_a_crash",),
    ),
    8: (
        "partly judged set",
        (
            "test_faults::test_a_partly_judged_set_is_incomplete_with_bounds_and_the_next_run_completes_it",
            "test_tables::test_incomplete_cells_have_bounds_and_no_value",
        ),
    ),
    9: (
        "a failed verdict in the cache",
        (
            "test_faults::test_a_partly_judged_set_is_incomplete_with_bounds_and_the_next_run_completes_it",
            "test_mt_bench::test_failed_calls_stay_errors_and_are_retried_by_the_next_run",
            "test_alpaca_eval::test_failed_calls_are_errors_retried_by_the_next_run_and_finished_work_is_not_repeated",
        ),
    ),
    10: (
        "finished work run again",
        (
            "test_faults::test_a_partly_judged_set_is_incomplete_with_bounds_and_the_next_run_completes_it",
            "test_judge_client::test_finished_work_run_again_makes_no_call_and_the_same_bytes",
            "test_end_to_end::test_a_finished_study_runs_no_stage_again",
        ),
    ),
    11: (
        "late reply after a retry",
        (
            "test_judge_client::test_a_late_reply_counts_and_the_first_valid_one_wins",
            "test_judge_client::test_of_two_final_rows_of_one_key_the_first_wins",
        ),
    ),
    12: (
        "SIGKILL at any byte of any write",
        (
            "test_judge_client::test_a_journal_cut_at_any_byte_loses_at_most_the_row_being_written",
            "test_judge_client::test_a_torn_tail_is_reported",
            "test_store::test_a_folder_moved_but_not_recorded_is_removed",
            "test_store::test_the_journal_of_a_killed_attempt_is_continued",
            "test_end_to_end::test_killed_at_five_moments_it_continues_to_the_same_bytes",
        ),
    ),
    13: (
        "disk full",
        (
            "test_faults::test_a_full_disk_fails_the_stage_keeps_what_was_paid_for_and_the_old_manifest",
            "test_judge_client::test_a_full_disk_leaves_the_old_rows_and_says_so",
            "test_judge_client::test_a_full_disk_at_the_end_keeps_the_journal",
            "test_store::test_a_failed_write_leaves_the_old_file",
        ),
    ),
    14: (
        "two processes on one store",
        (
            "test_faults::test_two_processes_on_one_store_ask_once_and_commit_once",
            "test_judge_client::test_a_second_process_waits_and_finds_the_judgments",
            "test_store::test_a_lock_excludes_others_and_dies_with_its_owner",
        ),
    ),
    15: (
        "same item under another model, prompt, template, sampling or judge",
        (
            "test_judge_client::test_the_key_holds_everything_that_decides_the_reply",
            "test_mt_bench::test_a_changed_answer_is_a_new_question_to_the_judge",
            "test_plan::test_settings_that_decide_numbers_change_the_first_stage_they_reach",
        ),
    ),
    16: (
        "resume after a change of configuration, code version or data",
        (
            "test_faults::test_a_changed_setting_code_version_or_file_is_a_new_key_and_old_rows_stay",
            "test_plan::test_a_stage_whose_code_changed_has_a_new_version",
            "test_models::test_checkpoint_changed_since_planning_is_refused",
            "test_tune::test_a_changed_space_is_refused_with_the_difference",
            "test_store::test_a_store_of_another_schema_is_refused_with_what_to_do",
        ),
    ),
    17: (
        "missing, duplicated or reordered instructions",
        (
            "test_alpaca_eval::test_reordered_answers_give_the_same_bytes",
            "test_alpaca_eval::test_partial_sets_are_joined_by_id_not_by_position",
            "test_alpaca_eval::test_answers_that_do_not_fit_are_named",
            "test_published::test_the_802_row_model_shows_all_three_values",
            "test_mt_bench::test_missing_answers_are_rows_and_foreign_or_doubled_ones_are_refused",
        ),
    ),
    18: (
        "degenerate length-controlled input",
        (
            "test_alpaca_eval::test_constant_preference_and_equal_lengths_fall_back_to_the_win_rate_and_are_flagged",
            "test_lc::test_degenerate_rows_are_named",
        ),
    ),
    19: (
        "wrong chat template, doubled BOS, missing end-of-turn token",
        (
            "test_models::test_broken_templates_are_refused_and_the_tokens_shown",
            "test_models::test_checkpoint_stage_runs_the_token_preflight",
            "test_academic::test_a_doubled_bos_is_refused_with_the_tokens_shown",
        ),
    ),
    20: (
        "judge alias or reference set changed between runs",
        (
            "test_faults::test_a_changed_judge_behind_the_same_name_fails_the_stage_with_both_shown",
            "test_faults::test_another_reference_set_is_another_stage_and_the_report_refuses_to_mix_them",
            "test_judge_client::test_another_model_behind_the_same_name_is_refused_with_both_shown",
            "test_mt_bench::test_another_reference_set_or_judge_shows_in_every_row",
        ),
    ),
    21: (
        "verdict syntax or delimiters in answers, constant answers",
        (
            "test_mt_bench::test_verdict_syntax_in_answers_changes_no_other_item_and_is_listed",
            "test_mt_bench::test_constant_answers_are_flagged",
            "test_alpaca_eval::test_injections_change_no_other_row_and_are_listed",
        ),
    ),
    22: (
        "pickle checkpoint, repository code",
        (
            "test_models::test_pickle_weights_are_refused_unless_named",
            "test_models::test_repository_code_is_refused_unless_named",
        ),
    ),
    23: (
        "secrets; hostile answers",
        (
            "test_secrets::test_a_key_is_nowhere_but_in_the_header",
            "test_judge_client::test_the_key_goes_to_the_endpoint_and_nowhere_else",
            "test_execute::test_secrets_are_redacted_from_reasons",
            "test_tables::test_hostile_text_stays_text_in_every_form",
            "test_report::test_hostile_outputs_are_text_and_the_page_loads_nothing",
        ),
    ),
    24: (
        "a trial killed, NaN or infinite objective, locked database",
        (
            "test_faults::test_a_killed_trial_is_tried_again_and_the_search_goes_on",
            "test_faults::test_an_infinite_objective_is_a_failed_trial_with_its_reason",
            "test_faults::test_a_locked_database_is_waited_for",
            "test_tune::test_failures_keep_their_reason_and_are_never_best",
        ),
    ),
    25: (
        "one seed, one item, 0 or 100 %, NaN",
        (
            "test_faults::test_equal_scores_of_one_seed_have_no_zero_width_interval",
            "test_stats::test_one_item_is_undefined_unless_binary",
            "test_stats::test_binary_scores_get_wilson_even_at_the_ends",
            "test_stats::test_no_interval_below_three_seeds",
            "test_stats::test_equal_scores_never_give_a_zero_width_interval",
            "test_stats::test_nothing_at_all_is_incomplete",
        ),
    ),
}
"""Case of the evaluation's list of faults → what it is, and the tests that hold it."""
