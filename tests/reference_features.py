"""What run_qa.py, the script that most people fine-tune with, makes of questions: its feature function, written anew."""


def run_qa_features(tokenizer, records: list[dict]) -> list[dict]:
    """What run_qa's prepare_train_features makes of a batch of records, padded to 384."""
    found = tokenizer(
        [record["question"].lstrip() for record in records],
        [record["context"] for record in records],
        truncation="only_second",
        max_length=384,
        stride=128,
        padding="max_length",
        return_overflowing_tokens=True,
        return_offsets_mapping=True,
        return_token_type_ids=True,
    )
    features = []
    for i, offsets in enumerate(found["offset_mapping"]):
        record = records[found["overflow_to_sample_mapping"][i]]
        no_answer = found["input_ids"][i].index(tokenizer.cls_token_id)
        start, end = run_qa_labels(record, offsets, found.sequence_ids(i), no_answer)
        features.append(
            {
                "input_ids": found["input_ids"][i],
                "attention_mask": found["attention_mask"][i],
                "token_type_ids": found["token_type_ids"][i],
                "start_positions": start,
                "end_positions": end,
            }
        )
    return features


def run_qa_labels(record: dict, offsets, segments, no_answer: int) -> tuple[int, int]:
    """The first and the last token of a record's answer in a feature, as run_qa's loop finds them."""
    if not record["answers"]:
        return no_answer, no_answer
    begin = record["starts"][0]
    stop = begin + len(record["answers"][0])
    first = segments.index(1)
    last = len(segments) - 1 - segments[::-1].index(1)
    if offsets[first][0] > begin or offsets[last][1] < stop:
        return no_answer, no_answer
    while first < len(offsets) and offsets[first][0] <= begin:
        first += 1
    while offsets[last][1] >= stop:
        last -= 1
    return first - 1, last + 1
