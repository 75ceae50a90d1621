"""Other wordings of the kinds a detector may find, and requests that only look like them.

Neither was looked at when the detector's rules were written; slots are those of the generator.
"""

OTHER_WORDINGS: dict[str, dict[str, tuple[str, ...]]] = {
    "extract_email": {
        "": (
            "Please pull the email address out of the message below.\n\n{text}",
            "I need the e-mail address in this text:\n\n{text}\n\nJust the address.",
            "{text}\n\nWhat e-mail address is given in the text above?",
            "Which email address appears in this message? {text}",
            "Return the email address from the input, no explanation.\nInput: {text}",
            "Could you find the e-mail address in the text and write only that?\n{text}",
            "email address in this text please: {text}",
            "What's the email in the following sentence?\n\n{text}",
        )
    },
    "extract_field": {
        "": (
            "Look at this record and tell me the {lower}, nothing else.\n\n{record}",
            "{record}\n\n{field}?",
            "What value is given for {field} in the record?\n\n{record}",
            "Please extract the {lower} from this entry:\n\n{record}",
            "I need only the {lower}.\n\n{record}",
            "{record}\n\nPrint the value of the field {field}.",
        )
    },
    "extract_url": {
        "": (
            "Please pull the link out of the message below.\n\n{text}",
            "I need the URL in this text:\n\n{text}\n\nJust the URL.",
            "{text}\n\nWhat link is given in the text above?",
            "Which web address appears in this message? {text}",
            "Return the URL from the input, no explanation.\nInput: {text}",
            "What's the website in the following text?\n\n{text}",
        )
    },
    "extract_phone": {
        "": (
            "Please pull the phone number out of the message below.\n\n{text}",
            "I need the phone number in this text:\n\n{text}\n\nJust the number.",
            "{text}\n\nWhich telephone number is given in the text above?",
            "Which phone number appears in this message? {text}",
            "Return the phone number from the input, no explanation.\nInput: {text}",
            "Could you find the telephone number in the text and write only that?\n{text}",
        )
    },
    "extract_amount": {
        "": (
            "Please pull the amount of money out of the message below.\n\n{text}",
            "I need the price in this text:\n\n{text}\n\nJust the price.",
            "{text}\n\nWhat amount is mentioned in the text above?",
            "How much money does this message mention? {text}",
            "Return the price from the input, no explanation.\nInput: {text}",
            "Could you find the amount of money in the text and write only that?\n{text}",
        )
    },
    "record_to_json": {
        "": (
            "Please make JSON of this record. Every value is a string.\n\n{record}",
            "{record}\n\nGive me the record above as a JSON object with the keys {keys}.",
            "I need this entry as JSON, all values as strings:\n\n{record}",
            "Output the following record as a JSON object.\n{record}",
            "Write this as JSON with the keys {keys}:\n\n{record}",
            "{record}\n\nThe same as a flat JSON object with strings, please.",
        )
    },
    "list_to_json": {
        "": (
            'Please write this list as JSON with the key "items".\n\n{text}',
            'I need the list as a JSON object, {{"items": [...]}}:\n{text}',
            '{text}\n\nGive me the list above as JSON, with the entries in the array "items".',
            'Output a JSON object with the array "items" for the following list.\n\n{text}',
            'Make a JSON object of this list; use the key "items".\n{text}',
            'Write JSON only: {{"items": ["...", "..."]}}\n\n{text}',
        )
    },
    "extract_number": {
        "": (
            "Please pull out the {what} from this text.\n\n{text}",
            "I need the {what} in the message below, just the number.\n\n{text}",
            "{text}\n\nWhat is the {what}?",
            "Which {what} is given in the following sentence? {text}",
            "Print only the {what} mentioned in the text.\nText: {text}",
            "Could you find the {what} here? {text}",
        )
    },
    "extract_date": {
        "": (
            "Please pull the date out of this text.\n\n{text}",
            "{text}\n\nWhich date is given in the sentence above?",
            "Tell me just the date in the following message: {text}",
            "Look for the date in this sentence and copy it.\n\n{text}",
            "I need only the date.\n\n{text}",
            "What's the date in the text? Write only the date.\nText: {text}",
        )
    },
    "classify_ticket": {
        "": (
            "You get a customer message. Reply with its category ({labels}) and nothing else.\n\n{text}",
            "Choose one label from {labels} for this ticket:\n\n{text}",
            "Which of these categories does the message belong to: {labels}?\n\nMessage: {text}",
            "Please sort the following support message into {labels}. Just the category.\n\n{text}",
            "{text}\n\nWhich category is right: {labels}?",
            "Options: {labels}\nTicket: {text}\nWhich option fits best? One word.",
        )
    },
    "sentiment": {
        "": (
            "Tell me if this customer feedback is {labels}.\n\n{text}",
            "Judge the tone of this comment as {labels}, one word only: {text}",
            "{text}\n\nOverall, is this {labels}?",
            "Would you say the review below is {labels}?\n\n{text}",
            "Determine the sentiment ({labels}) of this sentence.\n{text}",
            'Is the opinion in "{text}" {labels}?',
        )
    },
    "language": {
        "": (
            "Tell me the language of this text.\n\n{text}",
            "In which language is the sentence below written? Just the name.\n\n{text}",
            "What is the language of the following message?\n{text}",
            "Recognise the language and reply with one word: {text}",
            "{text}\n\nWhich language is that?",
            "Please determine the language of this sentence: {text}",
        )
    },
    "format_date": {
        "": (
            "Please give {date} in ISO format.",
            "Change {date} into the form YYYY-MM-DD, just the date.",
            "I need this date as YYYY-MM-DD: {date}",
            "{date} in YYYY-MM-DD?",
            "Turn {date} into an ISO 8601 date.",
            "Show the date {date} in ISO 8601 style, no explanation.",
        )
    },
    "change_case": {
        "": (
            "Please make this {case}: {text}",
            "Turn the phrase below into {case}.\n\n{text}",
            'Show "{text}" in {case} please.',
            "I need this in {case}:\n{text}",
            "{text}\n\nRewrite it in {case}, nothing else.",
            "Transform the following line to {case}.\n\n{text}",
        )
    },
    "arithmetic": {
        "": (
            "{a} {sign} {b}",
            "What's {a} {sign} {b}? Just the number please.",
            "Please calculate {a} {words} {b}.",
            "Tell me the result of {a} {sign} {b}.",
            "Give me {a} {words} {b} as a number.",
            "Evaluate {a} {sign} {b}",
        )
    },
    "compare_numbers": {
        "": (
            "Tell me which is {which}: {a} or {b}.",
            "{a} or {b}: which number is {which}?",
            "Please write the {which} of the two numbers {a} and {b}.",
            "What is the {which} number, {a} or {b}?",
            "Pick the {which} number: {a}, {b}",
            "Is {a} or {b} {which}? Reply with the number.",
        )
    },
    "capital": {
        "": (
            "What's the capital city of {country}?",
            "Which is the capital of {country}? Just the name.",
            "Please tell me what the capital of {country} is.",
            "{country}: capital?",
            "Give the capital of {country}, nothing else.",
            "What city is the capital of {country}?",
        )
    },
    "element": {
        "symbol": (
            "What's the symbol of {name}?",
            "Tell me the chemical symbol of {name}.",
            "In the periodic table, which symbol stands for {name}?",
            "Please write only the symbol for the element {name}.",
            "{name}: chemical symbol?",
            "How is {name} written as a chemical symbol?",
        ),
        "name": (
            "What's the element with the symbol {symbol}?",
            "Tell me which element {symbol} is.",
            "In the periodic table, which element has the symbol {symbol}?",
            "Please write only the name of the element with the symbol {symbol}.",
            "Symbol {symbol}: which chemical element?",
            "For which element does the symbol {symbol} stand?",
        ),
    },
    "translate_word": {
        "": (
            "What's {word} in {language}?",
            'Tell me the {language} word for "{word}".',
            "Please translate the word {word} to {language}.",
            "{word} in {language}?",
            "Which {language} word means the same as {word}? Just the word.",
            'How is "{word}" called in {language}?',
        )
    },
    "spelling": {
        "choose": (
            "Which of these is spelled correctly? {a}, {b}",
            "What is the right spelling: {a} or {b}?",
            "Tell me the correct spelling, {a} or {b}.",
            "{a} or {b}: which is the correct spelling?",
            "Which is spelt right, {a} or {b}? Just the word.",
            "Please pick the right spelling: {a} / {b}",
        ),
        "correct": (
            "How is {wrong} spelled correctly?",
            "Please correct the spelling of this word: {wrong}",
            "What's the right spelling of {wrong}?",
            "Give me the proper spelling of {wrong}, just the word.",
            "I misspelled this word: {wrong}. Write it right.",
            "How do you spell {wrong} correctly?",
        ),
    },
    "convert_units": {
        "": (
            "What's {value} {source} in {target}?",
            "Please convert {value} {source} into {target}.",
            "How much is {value} {source} in {target}? Just the number.",
            "Give me {value} {source} in {target}.",
            "{value} {source} in {target}?",
            "Tell me how many {target} {value} {source} are.",
        )
    },
}

FOREIGN = (
    "What is the capital gains tax?",
    "What is the capital gains tax in France?",
    "What is the capital of a company?",
    "What was the capital of France in 1940?",
    "What is the capital of France and why?",
    "What is the largest city of France?",
    "Is Paris the capital of France?",
    "What is the capital of Franconia?",
    "What is the population of the capital of France?",
    "Name three cities in France that are not the capital.",
    "Write a poem about the capital of France.",
    "What is the weather in the capital of Norway?",
    "Translate \"I love water\" into Spanish.",
    "Translate the following email into French: Dear Anna, the meeting is on Monday.",
    "How do you say good morning to a king in German?",
    "Conjugate the French verb for water.",
    "What is the German word for the joy at another's misfortune?",
    "Translate water into Japanese.",
    "What does the Spanish word casa mean?",
    "Write an email to anna@example.com about the meeting.",
    "Is anna@example.com a valid email address?",
    "What is the domain of the e-mail address anna.ito@example.com?",
    "Extract all e-mail addresses from this text: a@example.com and b@example.com wrote to us today.",
    "Extract the e-mail address and the phone number from this text: Write to a@example.com or 555-123-4567.",
    "Rewrite this message without the email address: Please write to a@example.com by Friday.",
    "Which email address belongs to Anna?\n\nBen: b@example.com\nAnna: a@example.com",
    "Is this review positive, negative or neutral?\n\nThe film was fine.",
    "Explain why this review is positive or negative: The film was great.",
    "Is this number positive or negative: minus five",
    "Are viruses positive or negative for evolution?",
    "Write a positive and a negative review of the film.",
    "Is the test positive or negative?\n\nThe patient has a fever and two lines on the strip.",
    "Which language should I learn first?",
    "Which programming language is this written in?\n\nfor i in range(3): print(i)",
    "What language do people in Brazil speak?",
    "Translate this text to English: Der Zug kommt zu spät heute.",
    "Which language family does this text belong to?\n\nDer Zug kommt zu spät heute.",
    "What date is 30 days after March 5, 2024?",
    "What day of the week was March 5, 2024?",
    "Write a function that converts March 5, 2024 to YYYY-MM-DD.",
    "What is the ISO 8601 standard?",
    "Convert all dates in this text to YYYY-MM-DD: from March 5, 2024 to March 9, 2024.",
    "How many days are between March 5, 2024 and today?",
    "Which date comes first, March 5, 2024 or May 3, 2024?",
    "What is 17% of 230?",
    "What is 2 + 2 * 3?",
    "What is 12 + 30 apples minus 5?",
    "What is 123456 * 789?",
    "What is the square root of 16 + 9?",
    "What is 5 / 0?",
    "What is 10 / 3?",
    "If x + 12 = 30, what is x?",
    "What is 12 + 13 in binary?",
    "On 9/11 what happened?",
    "What is 1 - 1000 in words?",
    "Which is larger, an elephant or a whale?",
    "Which is larger: 9.8, 9.11 or 10?",
    "Which is larger: 2/3 or 3/4?",
    "Which is larger, 5 km or 3 miles?",
    "Which planet is larger than Earth?",
    "Explain which number is larger: 9.8 or 9.11",
    "Convert 5 miles to kilometers.",
    "Convert 100 dollars to euros.",
    "Convert 5 liters to kilograms.",
    "How many days are in 3 months?",
    "How many feet are in 2.5 miles?",
    "What is the symbol for infinity?",
    "What does the dove symbol stand for?",
    "Which element of design is the most important?",
    "What is the symbol of the element of surprise?",
    "What is the atomic number of gold?",
    "Why is gold's symbol Au?",
    "What is the stock symbol for Gold?",
    "How do you spell relief?",
    "How do you spell Mississippi backwards?",
    "Which spelling is British: color or colour?",
    "Correct the spelling in this text: I recieve many leters and definately anser them.",
    "Cast a spell in Latin.",
    "Convert this function to lower case names: def GetName(): pass",
    "Write a shell script that converts file names to upper case.",
    "How do I type in capital letters on a phone?",
    "Is the following in upper case or lower case? HELLO WORLD",
    "Classify this ticket as urgent or not urgent: I was charged twice.",
    "Classify this ticket as billing, technical, shipping, account or other.\n\nI was charged twice.",
    "Explain the difference between billing, technical, shipping and account tickets.",
    "What is the order number of the planets?",
    "Check whether order number 123456 is valid.",
    "What is my order number?",
    "Name: Anna\nCity: Oslo\nOrder: A1234\n\nIs the city in Norway?",
    "Name: Anna\nCity: Oslo\nOrder: A1234\n\nWrite a letter to the name above.",
    "Name: Anna\nCity: Oslo\nOrder: A1234\n\nWhat is the capital of the city's country?",
    "Name: Anna\nCity: Oslo\nOrder: A1234\n\nGive the name and the city.",
    "Which link should I click to reset my password?",
    "Is https://www.example.com/help a safe link?",
    "Extract all links from this text: see https://a.example.com and https://b.example.com for more.",
    "Summarize the page behind this URL: our help is at https://www.example.com/help",
    "Extract the domain of the URL: see https://www.example.com/help for more",
    "Shorten this link: https://www.example.com/help",
    "What is the phone number of the police?",
    "Which country does this phone number belong to? Call me at +44 20 7946 0123 please.",
    "Write the phone number 555-123-4567 with dots.",
    "Extract the phone number and the name: call Anna at 555-123-4567 today.",
    "Extract the e-mail address and the name: please write to Anna, a@example.com, by Friday.",
    "Which date is mentioned here and why? The contract was signed on 5 March 2024 in Oslo.",
    "Extract the date from this sentence: The contract was signed on 03/04/2024 in Oslo.",
    "Extract the amount of money from this text: The house costs $1,250,000 in all.",
    "Is 555-123-4567 a valid phone number?",
    "Remove the phone number from this text: please call Anna at 555-123-4567.",
    "How much money is $20.00 in euros?",
    "What is the price of the tablet and of the case? The tablet is $99.00, the case $12.00.",
    "Which amount is larger? The tablet costs $99.00 today.",
    "What is a fair price for this? The tablet costs $99.00 today.",
    "Extract the amount of money and the currency: the tablet costs $99.00 today.",
    "How much money is left if the tablet costs $99.00 and I have $120.00?",
    "Write a Python function that returns the record as JSON.\n\nName: Anna\nCity: Oslo\nOrder: A1234",
    "Is this valid JSON?\n\nName: Anna\nCity: Oslo\nOrder: A1234",
    "Write a JSON schema for this record.\n\nName: Anna\nCity: Oslo\nOrder: A1234",
    "Convert this record to JSON and add a field Country.\n\nName: Anna\nCity: Oslo\nOrder: A1234",
    "Convert this record to JSON with German keys.\n\nName: Anna\nCity: Oslo\nOrder: A1234",
    'Sort this list and write it as JSON with the key "items".\n\npear, apple, plum',
    'Write the list in upper case as JSON with the key "items".\n\npear, apple, plum',
    'What does "items" mean in JSON?\n\npear, apple, plum',
    'Convert the numbers to JSON with the key "items": 1, 2, 3',
    "Hello", "Thanks!", "continue", "Why?", "",
)  # fmt: skip
