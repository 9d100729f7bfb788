"""Prompts for who brings none: prose, dialogue, lists, code, numbers and several languages, written for this."""

from __future__ import annotations

BUILT_IN_PROMPTS = (
    "The lighthouse keeper had not spoken to anyone for eleven days when the supply boat finally came around the "
    "headland. He counted the crates twice, signed the paper without reading it, and asked the captain whether the "
    "bridge at Harrow had been repaired. The captain laughed and said that the bridge had been gone since spring.",
    "Photosynthesis turns light into chemical energy. In the first stage, pigments in the thylakoid membrane absorb "
    "photons and pass the energy to a reaction centre, where water is split and oxygen is set free. In the second "
    "stage, the energy stored in ATP and NADPH is used to build sugars from carbon dioxide.",
    "To make the dough, mix 500 grams of flour with 7 grams of dry yeast and a pinch of salt. Add 320 millilitres of "
    "warm water and two tablespoons of olive oil, and knead for ten minutes until it is smooth. Cover the bowl and let "
    "it rise for an hour, then shape it into two rounds and bake them at 230 degrees for",
    "Question: A train leaves the station at 9:40 and travels at 80 kilometres per hour. A second train leaves the "
    "same station at 10:10 and travels at 100 kilometres per hour on the same track. When does the second train catch "
    "up with the first?\nAnswer: The first train has a head start of 30 minutes, which is 40 kilometres. The second",
    'def merge_sorted(left, right):\n    """Merge two sorted lists into one sorted list."""\n    result = []\n'
    "    i = j = 0\n    while i < len(left) and j < len(right):\n        if left[i] <= right[j]:\n"
    "            result.append(left[i])\n            i += 1\n        else:\n            result.append(right[j])\n"
    "            j += 1\n    result.extend(left[i:])\n    result.extend(right[j:])\n    return",
    "SELECT customers.name, COUNT(orders.id) AS num_orders, SUM(orders.total) AS revenue\nFROM customers\n"
    "LEFT JOIN orders ON orders.customer_id = customers.id\nWHERE orders.created_at >= '2024-01-01'\n"
    "GROUP BY customers.name\nHAVING COUNT(orders.id) > 3\nORDER BY revenue DESC\nLIMIT",
    '{\n  "name": "weather-station",\n  "version": "2.3.1",\n  "sensors": [\n    {"id": 1, "kind": '
    '"temperature", "unit": "celsius", "value": 21.4},\n    {"id": 2, "kind": "humidity", "unit": '
    '"percent", "value": 48.0},\n    {"id": 3, "kind": "pressure", "unit":',
    "Dear Ms. Okafor,\n\nThank you for your application for the position of archivist. We were impressed by your work "
    "on the municipal records and would like to invite you to an interview on Thursday, 14 March, at 10 o'clock. "
    "Please bring two references and a copy of your diploma. If the date does not suit you,",
    "Theorem. There are infinitely many primes.\nProof. Suppose that there are only finitely many primes, and call "
    "them p1, p2, ..., pn. Consider the number N = p1 * p2 * ... * pn + 1. Dividing N by any of the primes leaves the "
    "remainder 1, so none of them divides N. But every integer greater than 1 has a prime divisor, so",
    "- Marta: Did you feed the cat this morning?\n- Jonas: I thought it was your turn.\n- Marta: It is always my turn "
    "when you want to sleep in.\n- Jonas: That is not fair. Last week I did it four days in a row, and I also cleaned "
    "the litter box.\n- Marta:",
    "Der Zug nach Leipzig hatte wieder einmal Verspätung, und auf dem Bahnsteig wurde es langsam kalt. Eine ältere "
    "Frau bot den Wartenden Tee aus einer Thermoskanne an, und nach einer Weile begann jemand, von früher zu erzählen, "
    "als die Strecke noch zweigleisig war und man die Uhr nach den Zügen",
    "Le marché commence à six heures du matin, quand les pêcheurs reviennent avec leurs caisses pleines de sardines. "
    "Les femmes du village choisissent les poissons avec soin, discutent du prix et se racontent les nouvelles de la "
    "semaine. Vers neuf heures, il ne reste plus que",
    "El río nace en la sierra, a más de dos mil metros de altura, y baja despacio entre pinos y piedras blancas hasta "
    "llegar al valle. En verano casi se seca, pero en abril, cuando se derrite la nieve, sus aguas cubren los campos y "
    "los vecinos tienen que",
    "Il gatto dormiva sul davanzale mentre la pioggia batteva sui vetri. Nella cucina si sentiva il profumo del sugo e "
    "la voce della nonna che cantava una vecchia canzone. Nessuno aveva fretta di uscire, perché la domenica",
    "長い冬が終わり、山の雪が少しずつ溶け始めた。村の人々は畑に出て、土の様子を確かめながら春の種まきの準備をしている。"
    "子どもたちは川のそばで遊び、冷たい水に手を入れては",
    "在这座古老的城市里,每天清晨都能听到卖豆腐的人敲着木梆子走过小巷。老人们坐在门前喝茶,谈论天气和孙子的功课。"
    "等到太阳升起来,街上的人渐渐多了,",
    "Зимой деревня почти пустеет: молодые уезжают в город, а старики топят печи и ждут весны. Почтальон приходит раз в "
    "неделю, приносит газеты и письма и всегда остаётся выпить чаю, потому что до следующего дома",
    "[2024-05-02 13:07:41] INFO  server started on port 8080\n[2024-05-02 13:07:44] INFO  connected to database "
    "'inventory' in 212 ms\n[2024-05-02 13:09:03] WARN  slow query (1840 ms): SELECT * FROM items\n"
    "[2024-05-02 13:09:05] ERROR request 7f3a failed: connection reset by peer\n[2024-05-02 13:09:06]",
    "$ git status\nOn branch main\nYour branch is ahead of 'origin/main' by 2 commits.\n  (use \"git push\" to publish "
    "your local commits)\n\nChanges not staged for commit:\n  modified:   src/parser.c\n  modified:   tests/"
    "parser_test.c\n\n$ git diff --stat\n src/parser.c | 14 +++++++",
    "year,month,rainfall_mm,sunny_days\n2021,1,84.2,6\n2021,2,61.0,9\n2021,3,55.7,11\n2021,4,40.3,14\n2021,5,38.8,17\n"
    "2021,6,22.1,21\n2021,7,15.4,24\n2021,8,19.9,23\n2021,9,",
    "#include <stdio.h>\n#include <stdlib.h>\n\nstruct node {\n    int value;\n    struct node *next;\n};\n\n"
    "struct node *push(struct node *head, int value) {\n    struct node *new_node = malloc(sizeof *new_node);\n"
    "    if (new_node == NULL) {\n        return NULL;\n    }\n    new_node->value = value;\n    new_node->next =",
    "The tenant shall pay the rent in advance on the first working day of each month. If the rent is not received "
    "within ten days of the due date, the landlord may charge interest at the statutory rate. Either party may "
    "terminate this agreement by giving notice in writing at least three months before",
    "What is the capital of Australia? Canberra.\nWhat is the capital of Canada? Ottawa.\nWhat is the capital of "
    "Brazil? Brasília.\nWhat is the capital of Turkey? Ankara.\nWhat is the capital of Morocco? Rabat.\nWhat is the "
    "capital of New Zealand?",
    "Night falls on the harbour, slow and grey,\nthe gulls have folded up the day,\nand one by one the windows fill\n"
    "with yellow light across the hill.\nA bell is rung, a door is closed,\nthe nets are hung, the rope is",
    "Minutes of the meeting of the allotment society, held on 3 June. Present: eleven members. The treasurer reported "
    "a balance of 412 pounds. It was agreed to repair the water tank before the summer. Mr. Lewis proposed that the "
    "hedge should be cut twice a year; the motion was carried with",
    "The patient, a 54-year-old woman, was admitted with fever and a productive cough of four days' duration. On "
    "examination her temperature was 38.9 degrees, her pulse 104 per minute and her blood pressure 118 over 76. Chest "
    "radiography showed consolidation of the right lower lobe, and treatment was started with",
    "const fetchUser = async (id) => {\n  const response = await fetch(`/api/users/${id}`);\n  if (!response.ok) {\n"
    "    throw new Error(`request failed: ${response.status}`);\n  }\n  return response.json();\n};\n\n"
    "fetchUser(42)\n  .then((user) => console.log(user.name))\n  .catch(",
    "<article>\n  <h1>How glaciers move</h1>\n  <p>Under its own weight, ice begins to flow like a very thick liquid. "
    "The middle of a glacier moves faster than its edges, where friction with the rock holds it back.</p>\n  <ul>\n"
    "    <li>Cold glaciers are frozen to their bed.</li>\n    <li>Warm glaciers",
    "Summary in one sentence: The report finds that bees visit gardens with native plants three times as often as "
    "gardens with lawns only, and recommends that cities leave a tenth of their parks unmown.\n\nSummary in three "
    "words:",
    "In the seventeenth century the trade in tulip bulbs rose to such heights that a single bulb could cost as much as "
    "a house on a canal. Contracts changed hands in taverns long before any flower was seen, and when in February 1637 "
    "the buyers at an auction in Haarlem stayed away, prices",
    "7 + 8 = 15\n16 + 27 = 43\n125 + 348 = 473\n1009 + 2992 = 4001\n48 * 3 = 144\n12 * 12 = 144\n250 / 5 = 50\n"
    "91 - 37 = 54\n3 ** 4 = 81\n17 % 5 = 2\n64 + 36 =",
    "Instructions for the night watch: walk round the building every two hours, beginning at 22:00. Check that the "
    "doors of the laboratory and of the store are locked. Write the time of each round into the book. If an alarm "
    "sounds, first call the fire brigade, then the head of",
)
