/** The tokens of a known-answer model, and which one follows which. */

export interface Token {
  text: string;
  /** One of `enum llama_token_type`. */
  type: number;
  /** The token that always follows. */
  nextId: number;
}

/** `enum llama_token_type` of llama.h. */
const TOKEN_TYPE = { normal: 1, unknown: 2, control: 3, byte: 6 } as const;

/** How SentencePiece vocabularies write a space. */
const SPACE = '▁';

export const UNKNOWN_ID = 0;
export const BEGIN_ID = 1;
export const END_ID = 2;

/**
 * Special tokens, bytes, the space, then the words; everything that is not a word leads to the first one.
 *
 * With a token for each byte, every text can be a prompt. A prompt may hold words too ("Count to 5" ends in
 * one): that the answer begins at the first word even then is up to the model, see `add_eos_token` there.
 *
 * @throws RangeError when the words are none, empty, doubled or contain `▁`.
 */
export function vocabulary(words: readonly string[], { loop }: { loop: boolean }): Token[] {
  const [firstWord, ...laterWords] = words;
  if (firstWord === undefined) throw new RangeError('A known-answer model needs at least one word to say');

  const prologue: Omit<Token, 'nextId'>[] = [
    { text: '<unk>', type: TOKEN_TYPE.unknown },
    { text: '<s>', type: TOKEN_TYPE.control },
    { text: '</s>', type: TOKEN_TYPE.control },
  ];
  for (let byte = 0; byte < 256; byte += 1) {
    prologue.push({ text: byteToken(byte), type: TOKEN_TYPE.byte });
  }
  prologue.push({ text: SPACE, type: TOKEN_TYPE.normal });

  // The first word stands without a space, so that the answer does. A loop comes back to a second form of
  // it, which has one.
  const chain = [firstWord, ...laterWords.map((word) => ` ${word}`)];
  if (loop) chain.push(` ${firstWord}`);
  const firstId = prologue.length;
  const lastId = firstId + chain.length - 1;
  const afterLastId = loop ? firstId + 1 : END_ID;

  const tokens = [
    ...prologue.map((token) => ({ ...token, nextId: firstId })),
    ...chain.map((text, index) => ({
      text: text.replaceAll(' ', SPACE),
      type: TOKEN_TYPE.normal,
      nextId: firstId + index === lastId ? afterLastId : firstId + index + 1,
    })),
  ];
  refuseUnsayable(words, tokens);
  return tokens;
}

function refuseUnsayable(words: readonly string[], tokens: readonly Token[]): void {
  for (const [index, word] of words.entries()) {
    if (word === '') throw new RangeError(`Word ${index + 1} is empty: a token needs a text`);
    if (word.includes(SPACE)) throw new RangeError(`"${word}" contains ${SPACE}, which reads as a space`);
    if (words.indexOf(word) !== index) {
      throw new RangeError(`"${word}" is there twice: what follows it would depend on which one it is`);
    }
  }
  const seen = new Set<string>();
  for (const { text } of tokens) {
    if (seen.has(text)) throw new RangeError(`"${text}" is a token already and cannot be a word`);
    seen.add(text);
  }
}

function byteToken(byte: number): string {
  return `<0x${byte.toString(16).toUpperCase().padStart(2, '0')}>`;
}
