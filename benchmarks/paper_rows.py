"""Made-up rows with the fields that the templates of the Cappy paper's data sets read, in those data sets' forms."""

from __future__ import annotations

from typing import Any

_READING = {
    "question": "What does the dog chase?",
    "context": "A dog runs. It chases a cat.",
    "title": "Animals",
    "metadata": {"split": "train"},
    "answers": {"text": ["a cat"], "answer_start": [20]},
}
_FILM = {
    "question": "Who wins?",
    "title": "The Race",
    "plot": "Ann and Bo race. Ann wins.",
    "answers": ["Ann", "Ann wins"],
    "no_answer": False,
}
_NEWS = {"document": "The river rose again in the night, and the town woke wet.", "summary": "River floods town."}
_REVIEW = {"text": "A film that one forgets.", "label": 0}
_STEP = {"question_para_step": ["Rain falls.", "The river rises."], "question_stem": "more rain falls, more flood"}
_ENTAILMENT = {"premise": "A dog runs in the park.", "hypothesis": "An animal moves.", "label": 0}
_PAIR = {"sentence1": "A dog runs.", "sentence2": "A dog is running."}
_LETTERS = {"text": ["north", "south", "east", "west"], "label": ["A", "B", "C", "D"]}

ROWS: dict[str, list[dict[str, Any]]] = {
    "adversarial_qa/dbert": [_READING],
    "adversarial_qa/dbidaf": [_READING],
    "adversarial_qa/droberta": [_READING],
    "ag_news": [{"text": "The team won in the last minute.", "label": 1}],
    "amazon_polarity": [{"title": "Fine", "content": "It works as it should.", "label": 1}],
    "app_reviews": [{"package_name": "org.sample.app", "review": "Quick and small.", "star": 4, "date": "May 1 2017"}],
    "cnn_dailymail/3.0.0": [{"article": "The river rose again in the night.", "highlights": "River floods town."}],
    "common_gen": [{"concepts": ["dog", "park", "run"], "target": "A dog runs in the park."}],
    "commonsense_qa": [
        {
            "question": "Where do fish live?",
            "choices": {"label": ["A", "B", "C", "D", "E"], "text": ["sea", "tree", "sky", "house", "car"]},
            "answerKey": "A",
        }
    ],
    "cos_e/v1.11": [
        {
            "question": "Where do fish live?",
            "choices": ["sea", "tree", "sky", "house", "car"],
            "answer": "sea",
            "abstractive_explanation": "fish need water",
        }
    ],
    "cosmos_qa": [
        {
            "context": "It rained, so we stayed.",
            "question": "Why did we stay?",
            "answer0": "It was hot.",
            "answer1": "It was wet outside.",
            "answer2": "We were ill.",
            "answer3": "None of the above choices .",
            "label": 1,
        }
    ],
    "dbpedia_14": [{"title": "Acme", "content": " Acme is a firm that makes springs.", "label": 0}],
    "dream": [
        {
            "dialogue": ["M: Is it late?", "W: It is ten."],
            "question": "What time is it?",
            "choice": ["Nine.", "Ten.", "Eleven."],
            "answer": "Ten.",
        }
    ],
    "duorc/ParaphraseRC": [_FILM],
    "duorc/SelfRC": [_FILM],
    "gigaword": [_NEWS],
    "glue/mrpc": [_PAIR | {"label": 1}],
    "glue/qqp": [{"question1": "How old is it?", "question2": "What is its age?", "label": 1}],
    "imdb": [_REVIEW],
    "kilt_tasks/hotpotqa": [
        {
            "input": "Which river is longer?",
            "output": [{"answer": "the Nile", "meta": {"score": 0}, "provenance": []}],
        }
    ],
    "multi_news": [_NEWS | {"document": "The river rose. ||||| The town woke wet."}],
    "paws/labeled_final": [_PAIR | {"label": 1}],
    "qasc": [
        {
            "question": "Where does the sun rise?",
            "choices": _LETTERS,
            "answerKey": "C",
            "fact1": "The sun rises.",
            "fact2": "The east has the dawn.",
            "combinedfact": "The sun rises in the east.",
        }
    ],
    "quail": [
        {
            "context": "Ann ran home.",
            "question": "Who ran?",
            "answers": ["Bo", "Ann", "Cy", "not enough information"],
            "correct_answer_id": 1,
        }
    ],
    "quarel": [
        {
            "question": "Ice is smoother than sand. Where does it slide further? (A) ice (B) sand",
            "answer_index": 0,
            "world_literals": {"world1": ["ice"], "world2": ["sand"]},
        }
    ],
    "quartz": [
        {
            "question": "More heat makes water boil",
            "para": "Water boils sooner when it is hotter.",
            "choices": {"text": ["sooner", "later"], "label": ["A", "B"]},
            "answerKey": "A",
        }
    ],
    "quoref": [_READING],
    "ropes": [
        {
            "background": "Plants need light.",
            "situation": "One plant stands in the dark, one in the sun.",
            "question": "Which one grows, that in the dark or that in the sun?",
            "answers": {"text": ["in the sun"]},
        }
    ],
    "rotten_tomatoes": [_REVIEW],
    "samsum": [{"dialogue": "Ann: Late?\nBo: Ten.", "summary": "Bo tells Ann that it is ten."}],
    "sciq": [
        {
            "question": "What do plants need?",
            "support": "Plants live by light.",
            "correct_answer": "light",
            "distractor1": "noise",
            "distractor2": "salt",
            "distractor3": "wind",
        }
    ],
    "social_i_qa": [
        {
            "context": "Ann helped Bo.",
            "question": "How does Bo feel?",
            "answerA": "angry",
            "answerB": "thankful",
            "answerC": "bored",
            "label": "2",
        }
    ],
    "trec": [
        {"text": "How many legs has a spider ?", "coarse_label": coarse, "fine_label": fine}
        for coarse in range(6)
        for fine in range(50)
    ],
    "wiki_bio": [
        {
            "input_text": {
                "context": "ann lee\n",
                "table": {
                    "column_header": ["name", "birth_date", "article_title"],
                    "row_number": [1, 1, 1],
                    "content": ["ann lee", "1 may 1900", "ann lee\n"],
                },
            },
            "target_text": "ann lee was a painter .\n",
        }
    ],
    "wiki_hop/original": [
        {
            "question": "country_of_citizenship ann lee",
            "answer": "peru",
            "candidates": ["chile", "peru"],
            "supports": ["Ann Lee was born in Lima.", "Lima lies in Peru."],
        }
    ],
    "wiki_qa": [
        {"question": "how tall is it", "answer": "It is two metres tall .", "document_title": "It", "label": 1}
    ],
    "wiqa": [
        _STEP
        | {
            "question_stem": "suppose more rain falls happens, how will it affect more flood.",
            "metadata_question_type": kind,
            "answer_label": label,
            "answer_label_as_choice": letter,
            "choices": {"text": ["more", "less", "no effect"], "label": ["A", "B", "C"]},
        }
        for kind, label, letter in (("INPARA_EFFECT", "more", "A"), ("OUTOFPARA_DISTRACTOR", "no_effect", "C"))
    ],
    "xsum": [_NEWS],
    "yelp_review_full": [{"text": "Good soup.", "label": 3}],
    "anli": [_ENTAILMENT],
    "hellaswag": [
        {
            "activity_label": "Cooking",
            "ctx_a": "A man peels an onion.",
            "ctx_b": "he",
            "ctx": "A man peels an onion. he",
            "endings": ["cuts it up.", "flies away.", "reads a map.", "sings."],
            "label": "0",
        }
    ],
    "story_cloze/2016": [
        {
            "input_sentence_1": "Ann was late.",
            "input_sentence_2": "She ran.",
            "input_sentence_3": "The bus came.",
            "input_sentence_4": "She got on.",
            "sentence_quiz1": "She was in time.",
            "sentence_quiz2": "She lost her hat at sea.",
            "answer_right_ending": 1,
        }
    ],
    "super_glue/cb": [_ENTAILMENT],
    "super_glue/copa": [
        {
            "premise": "The grass was wet.",
            "question": question,
            "choice1": "It had rained.",
            "choice2": "The sun shone.",
            "label": 0,
        }
        for question in ("cause", "effect")
    ],
    "super_glue/rte": [_ENTAILMENT],
    "super_glue/wic": [{"word": "bank", "sentence1": "On the bank.", "sentence2": "In the bank.", "label": 0}],
    "super_glue/wsc.fixed": [
        {
            "text": "Ann thanked Bo because he helped.",
            "span1_text": "Bo",
            "span2_text": "he",
            "span1_index": 2,
            "span2_index": 4,
            "label": 1,
        }
    ],
    "winogrande/winogrande_xl": [
        {"sentence": "The cup fits the box as _ is small.", "option1": "the cup", "option2": "the box", "answer": "1"}
    ],
}
