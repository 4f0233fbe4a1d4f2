/** The tests that a document names, each as `` `test/….test.ts`: a part of its title ``. */
import { readFileSync } from 'node:fs';
import ts from 'typescript';
import { INTENDED_DIFFERENCES, intended } from '../e2e/intended-differences.js';

/** A shorter piece of a title could be found anywhere. */
const minTitleLength = 12;

const root = new URL('../../', import.meta.url);

/** What is wrong with the naming of a test; undefined when the file has one of this title. */
export function namingProblem(test: string): string | undefined {
  const [, file, title = ''] = /^`(test\/[\w./-]+\.test\.ts)`: (.+)$/.exec(test) ?? [];
  if (file === undefined) return `'${test}' is not of the form \`test/….test.ts\`: a part of a title`;
  if (title.length < minTitleLength) return `'${title}' is too short to tell one test from others`;
  try {
    return textsOf(file).some((text) => text.includes(title))
      ? undefined
      : `${file} has no test called '${title}'`;
  } catch (error) {
    return `${file} cannot be read: ${String(error)}`;
  }
}

const knownTexts = new Map<string, readonly string[]>();

/** What a source file says in its strings: its titles are among them, those of tables and of templates, too. */
function textsOf(file: string): readonly string[] {
  let texts = knownTexts.get(file);
  if (texts === undefined) {
    const source = readFileSync(new URL(file, root), 'utf8');
    texts = textsIn(ts.createSourceFile(file, source, ts.ScriptTarget.Latest));
    knownTexts.set(file, texts);
  }
  return texts;
}

function textsIn(node: ts.Node): string[] {
  const texts: string[] = [];
  if (ts.isStringLiteralLike(node) || ts.isTemplateHead(node) || ts.isTemplateMiddleOrTemplateTail(node)) {
    texts.push(node.text);
  }
  if (ts.isCallExpression(node) && ts.isIdentifier(node.expression) && node.expression.text === 'intended') {
    const [id] = node.arguments;
    if (id && ts.isStringLiteral(id) && id.text in INTENDED_DIFFERENCES) {
      texts.push(intended(id.text as keyof typeof INTENDED_DIFFERENCES));
    }
  }
  ts.forEachChild(node, (child) => void texts.push(...textsIn(child)));
  return texts;
}
